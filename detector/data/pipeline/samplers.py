"""Which images come up in an epoch, and how often: plain chance, or more often those of rare classes.

A sampler is built from each image's class labels (int64, crowds left out, perhaps none) and the number of classes. Its
length is the same in every epoch, since the schedule counts steps.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from detector.core.errors import UserError
from detector.core.registry import Registry
from detector.core.validation import UnitFloat


class ImageSampler(Protocol):
    """An epoch's images in their order: indices (len(self),) int64, a function of the generator alone."""

    def __len__(self) -> int: ...

    def order(self, rng: np.random.Generator) -> np.ndarray: ...


IMAGE_SAMPLERS: Registry[ImageSampler] = Registry("image sampler")


@IMAGE_SAMPLERS.register("uniform")
class UniformSampler:
    """Every image once."""

    def __init__(self, labels_by_image: Sequence[np.ndarray], num_classes: int):
        self.num_images = len(labels_by_image)

    def __len__(self) -> int:
        return self.num_images

    def order(self, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(self.num_images)


@IMAGE_SAMPLERS.register("repeat_factor")
class RepeatFactorSampler:
    """Images of rare classes several times (LVIS, Gupta et al. 2019).

    A class in the fraction f_c of the images has the factor r_c = max(1, sqrt(threshold / f_c)); an image i the largest
    of its classes', or 1 without objects. An epoch has L = floor(sum of r_i) images, i among them r_i L / sum(r) times
    on average, and always this number rounded up or down. Cutting the sum to a whole number thus favours no image: it
    shortens every expectation by the same factor, above 1 - 1 / sum(r).
    """

    def __init__(self, labels_by_image: Sequence[np.ndarray], num_classes: int, *, threshold: UnitFloat = 0.001):
        classes, images = occurrences(labels_by_image)
        fractions = np.bincount(classes, minlength=num_classes) / len(labels_by_image)
        self.factors = np.ones(len(labels_by_image))
        np.maximum.at(self.factors, images, np.sqrt(threshold / fractions[classes]))

    def __len__(self) -> int:
        return int(self.factors.sum())

    def order(self, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(systematic(self.factors, len(self), rng))


@IMAGE_SAMPLERS.register("class_balanced")
class ClassBalancedSampler:
    """Every class equally often (class-aware sampling, Shen et al. 2016).

    An epoch has as many draws as there are images. Each draws one of the classes that occur, then one of the images
    that show it, uniformly; images without objects never come up. The draws are spread: in an epoch, the numbers of
    draws of any two classes, and of any two images for the same class, differ by one at most.
    Raises UserError where no image has an object.
    """

    def __init__(self, labels_by_image: Sequence[np.ndarray], num_classes: int):
        self.num_images = len(labels_by_image)
        self.classes, self.images = occurrences(labels_by_image)
        if not len(self.classes):
            raise UserError("data.sampler: class_balanced draws by objects, and no image has any", "choose uniform")
        self.weights = 1 / np.bincount(self.classes, minlength=num_classes)[self.classes]

    def __len__(self) -> int:
        return self.num_images

    def order(self, rng: np.random.Generator) -> np.ndarray:
        # Shuffled inside each class, else images a fixed distance apart would always come up together.
        shuffled = np.lexsort((rng.random(len(self.images)), self.classes))
        return rng.permutation(self.images[shuffled[systematic(self.weights, self.num_images, rng)]])


def occurrences(labels_by_image: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Each pair of a class and an image that shows it, once, in ascending order: classes (P,), images (P,)."""
    images = np.repeat(np.arange(len(labels_by_image)), [len(labels) for labels in labels_by_image])
    pairs = np.unique(np.concatenate(labels_by_image) * len(labels_by_image) + images)
    return np.divmod(pairs, len(labels_by_image))


def systematic(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) indices in ascending order: index i on average count * w_i / sum(w) times, and always this number
    rounded up or down, from equidistant points on the summed weights with one random offset."""
    ends = weights.cumsum()
    points = (rng.random() + np.arange(count)) * (ends[-1] / count)
    return np.searchsorted(ends[:-1], points, side="right")
