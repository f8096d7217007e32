"""The transform `color`: brightness, contrast, saturation and hue change."""

from typing import Annotated

from pydantic import Field

from detector.core.structures import Sample
from detector.core.validation import UnitFloat
from detector.data.pipeline.transforms.base import TRANSFORMS, TransformContext


@TRANSFORMS.register("color")
class Color:
    """Change the colors of the image.

    brightness, contrast, saturation: the greatest relative change; the factor is drawn from 1 +- this strength.
    hue: the greatest shift either way, in turns of the color circle.
    """

    def __init__(
        self,
        *,
        brightness: UnitFloat = 0.0,
        contrast: UnitFloat = 0.0,
        saturation: UnitFloat = 0.0,
        hue: Annotated[UnitFloat, Field(le=0.5)] = 0.0,
    ):
        from detector.data.pipeline.transforms.library import color_jitter  # its import is slow

        self.operations = color_jitter(brightness, contrast, saturation, hue)

    def __call__(self, sample: Sample, context: TransformContext) -> Sample:
        return self.operations(sample, context.rng)
