"""The transform `color`, which changes brightness, contrast, saturation and hue."""

from typing import Annotated

from pydantic import Field

from detector.core.structures import Sample
from detector.core.validation import UnitFloat
from detector.data.pipeline.transforms.base import TRANSFORMS, TransformContext


@TRANSFORMS.register("color")
class Color:
    """A transform that changes the colors of the image.

    Args:
        brightness: the maximum relative change of the brightness. The factor is drawn from 1 - brightness to
            1 + brightness.
        contrast: the maximum relative change of the contrast, as for `brightness`.
        saturation: the maximum relative change of the saturation, as for `brightness`.
        hue: the maximum shift of the hue in both directions, as a fraction of the color circle.
    """

    def __init__(
        self,
        *,
        brightness: UnitFloat = 0.0,
        contrast: UnitFloat = 0.0,
        saturation: UnitFloat = 0.0,
        hue: Annotated[UnitFloat, Field(le=0.5)] = 0.0,
    ):
        from detector.data.pipeline.transforms.library import color_jitter  # the import of albumentations is slow

        self.operations = color_jitter(brightness, contrast, saturation, hue)

    def __call__(self, sample: Sample, context: TransformContext) -> Sample:
        """Return the sample with changed colors."""
        return self.operations(sample, context.rng)
