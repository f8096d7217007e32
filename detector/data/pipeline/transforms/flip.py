"""The transform `flip`, which mirrors the image."""

from detector.core.structures import Sample
from detector.core.validation import UnitFloat
from detector.data.pipeline.transforms.base import TRANSFORMS, TransformContext


@TRANSFORMS.register("flip")
class Flip:
    """A transform that mirrors the image.

    Args:
        horizontal: the probability of a mirror from left to right.
        vertical: the probability of a mirror from top to bottom.
    """

    def __init__(self, *, horizontal: UnitFloat = 0.5, vertical: UnitFloat = 0.0):
        from detector.data.pipeline.transforms.library import flips  # the import of albumentations is slow

        self.operations = flips(horizontal, vertical)

    def __call__(self, sample: Sample, context: TransformContext) -> Sample:
        """Return the sample after the random mirrors."""
        return self.operations(sample, context.rng)
