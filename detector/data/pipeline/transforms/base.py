"""The protocol, the context and the registry of transforms."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from detector.core.registry import Registry
from detector.core.structures import Sample


class Draw(Protocol):
    """The protocol of `TransformContext.draw`."""

    def __call__(self, index: int | None = None) -> Sample:
        """Return the sample `index` of the training set. None draws the index uniformly."""
        ...


@dataclass(frozen=True, slots=True)
class TransformContext:
    """The context of a transform.

    Attributes:
        rng: the generator of this sample. A transform draws all its random numbers from this generator, so that a
            resumed run repeats them. The state of the generator depends on the seed, the epoch, the image, and how
            often the epoch has had the image before.
        progress: the completed fraction of the run, 0 at the first batch and below 1 at the last batch.
        draw: returns another sample of the training set. Without an index, the sample is drawn uniformly with `rng`.
            The sample is read and resized like the first sample, and no transform has changed it. `draw` raises
            UserError where the image is unreadable and the config allows no replacement (`faults.max_unreadable`).
    """

    rng: np.random.Generator
    progress: float
    draw: Draw


class Transform(Protocol):
    """The protocol of transforms, which change a training sample after the resize."""

    def __call__(self, sample: Sample, context: TransformContext) -> Sample:
        """Return the changed sample. The transform does not modify the arrays of `sample`.

        Args:
            sample: the sample.
            context: the generator, the progress of the run, and other samples.

        Returns:
            A sample whose boxes are inside the image and in the order of their labels and ignore flags.
        """
        ...


TRANSFORMS: Registry[Transform] = Registry("transform")


class OccasionalTransform(ABC):
    """The base class of transforms that change a part of the samples, until a fraction of the run is complete.

    The last part of the run then trains with unchanged samples, which have the distribution of the validation set
    (YOLOX, Ge et al. 2021).

    Args:
        probability: the probability that a sample is changed.
        until: the fraction of the run after which no sample is changed.
    """

    def __init__(self, probability: float, until: float):
        self.probability = probability
        self.until = until

    def __call__(self, sample: Sample, context: TransformContext) -> Sample:
        """Return the changed sample or the same sample. After `until`, no random number is drawn.

        Args:
            sample: the sample.
            context: the generator, the progress of the run, and other samples.
        """
        if context.progress >= self.until or context.rng.random() >= self.probability:
            return sample
        return self.change(sample, context)

    @abstractmethod
    def change(self, sample: Sample, context: TransformContext) -> Sample:
        """Return the changed sample. See `Transform`."""
