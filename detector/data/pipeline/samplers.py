"""Image samplers: they choose the images of an epoch, and can repeat images of rare classes.

A sampler is built from the number of classes and the class labels of each image. The labels are int64 without crowds,
and an image may have none. The length of a sampler is the same in every epoch, since the learning-rate schedule counts
steps.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from detector.core.errors import UserError
from detector.core.registry import Registry
from detector.core.validation import UnitFloat


class ImageSampler(Protocol):
    """The protocol of image samplers. `len` is the number of images of an epoch."""

    def __len__(self) -> int: ...

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the images of an epoch: indices (len(self),) int64 that depend only on the generator."""
        ...


IMAGE_SAMPLERS: Registry[ImageSampler] = Registry("image sampler")


@IMAGE_SAMPLERS.register("uniform")
class UniformSampler:
    """A sampler that draws each image once, in random order."""

    def __init__(self, labels_by_image: Sequence[np.ndarray], num_classes: int):
        self.num_images = len(labels_by_image)

    def __len__(self) -> int:
        return self.num_images

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Return a random permutation of the images."""
        return rng.permutation(self.num_images)


@IMAGE_SAMPLERS.register("repeat_factor")
class RepeatFactorSampler:
    """A sampler that repeats images of rare classes (LVIS, Gupta et al. 2019).

    A class c in the fraction f_c of the images has the repeat factor r_c = max(1, sqrt(threshold / f_c)). The factor
    r_i of image i is the largest factor of its classes, or 1 without objects. An epoch has L = floor(sum of r_i)
    images. The expected number of repetitions of image i is r_i L / sum(r), and the actual number is this value rounded
    up or down. Rounding the sum down favors no image: it scales all expected values by the same factor, which is
    greater than 1 - 1 / sum(r).

    Args:
        labels_by_image: the class labels of each image.
        num_classes: the number of classes.
        threshold: the fraction of images below which a class is repeated.
    """

    def __init__(self, labels_by_image: Sequence[np.ndarray], num_classes: int, *, threshold: UnitFloat = 0.001):
        classes, images = occurrences(labels_by_image)
        fractions = np.bincount(classes, minlength=num_classes) / len(labels_by_image)
        self.factors = np.ones(len(labels_by_image))
        np.maximum.at(self.factors, images, np.sqrt(threshold / fractions[classes]))

    def __len__(self) -> int:
        return int(self.factors.sum())

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Return systematic draws with the repeat factors as weights, in random order."""
        return rng.permutation(systematic(self.factors, len(self), rng))


@IMAGE_SAMPLERS.register("class_balanced")
class ClassBalancedSampler:
    """A sampler that draws all classes equally often (class-aware sampling, Shen et al. 2016).

    An epoch has as many draws as the data set has images. Each draw takes a class that occurs, and then an image with
    this class, both uniformly. Images without objects are never drawn. In an epoch, the numbers of draws of any two
    classes differ by at most 1. The numbers of draws of any two images for the same class also differ by at most 1.

    Args:
        labels_by_image: the class labels of each image.
        num_classes: the number of classes.

    Raises:
        UserError: no image has an object.
    """

    def __init__(self, labels_by_image: Sequence[np.ndarray], num_classes: int):
        self.num_images = len(labels_by_image)
        self.classes, self.images = occurrences(labels_by_image)
        if not len(self.classes):
            raise UserError("data.sampler: class_balanced needs objects, but no image has an object", "choose uniform")
        self.weights = 1 / np.bincount(self.classes, minlength=num_classes)[self.classes]

    def __len__(self) -> int:
        return self.num_images

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Return systematic draws with equal weights of all classes, in random order."""
        # Images are shuffled within each class. Otherwise, images at a fixed distance would always be drawn together.
        shuffled = np.lexsort((rng.random(len(self.images)), self.classes))
        return rng.permutation(self.images[shuffled[systematic(self.weights, self.num_images, rng)]])


def occurrences(labels_by_image: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return each pair of a class and an image with this class once, in ascending order: classes (P,), images (P,)."""
    images = np.repeat(np.arange(len(labels_by_image)), [len(labels) for labels in labels_by_image])
    pairs = np.unique(np.concatenate(labels_by_image) * len(labels_by_image) + images)
    return np.divmod(pairs, len(labels_by_image))


def systematic(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw indices by systematic sampling: equidistant points on the cumulative weights with a random offset.

    The expected number of draws of index i is count * w_i / sum(w), and the actual number is this value rounded up or
    down.

    Args:
        weights: (N,), the weight w_i of each index.
        count: the number of draws.
        rng: the generator of the offset.

    Returns:
        (count,) indices in ascending order.
    """
    ends = weights.cumsum()
    points = (rng.random() + np.arange(count)) * (ends[-1] / count)
    return np.searchsorted(ends[:-1], points, side="right")
