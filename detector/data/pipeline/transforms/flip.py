"""The transform `flip`: the image is mirrored."""

from detector.core.structures import Sample
from detector.core.validation import UnitFloat
from detector.data.pipeline.transforms.base import TRANSFORMS, TransformContext


@TRANSFORMS.register("flip")
class Flip:
    """Mirror the image from left to right and from top to bottom, each with its probability."""

    def __init__(self, *, horizontal: UnitFloat = 0.5, vertical: UnitFloat = 0.0):
        from detector.data.pipeline.transforms.library import flips  # its import is slow

        self.operations = flips(horizontal, vertical)

    def __call__(self, sample: Sample, context: TransformContext) -> Sample:
        return self.operations(sample, context.rng)
