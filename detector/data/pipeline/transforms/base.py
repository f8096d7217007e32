"""What all transforms share: their contract, their context and their registry."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from detector.core.registry import Registry
from detector.core.structures import Sample


@dataclass(frozen=True, slots=True)
class TransformContext:
    """What a transform may use beside its sample.

    rng: the generator of this sample. All random numbers of a transform come from it, so that a resumed run repeats
    them. Its state depends on the seed, the epoch and the image alone.
    progress: the part of the run that is done, 0 at the first batch and below 1 at the last batch.
    draw: returns another sample of the training set, drawn uniformly with `rng`. The sample is read and resized like
    the first sample, and no transform has changed it. Raises UserError where the image is unreadable and the config
    allows no substitute (`faults.max_unreadable`).
    """

    rng: np.random.Generator
    progress: float
    draw: Callable[[], Sample]


class Transform(Protocol):
    """A change of a training sample after it was resized.

    The transform returns a new sample and leaves the arrays of the given sample as they are. Boxes keep the order of
    their labels and ignore flags, and lie inside the image.
    """

    def __call__(self, sample: Sample, context: TransformContext) -> Sample: ...


TRANSFORMS: Registry[Transform] = Registry("transform")
