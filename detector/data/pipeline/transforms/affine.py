"""The transform `affine`, which zooms and moves the image."""

from typing import Annotated

from pydantic import AfterValidator

from detector.core.structures import Sample
from detector.core.validation import PositiveFloat, UnitFloat, in_order
from detector.data.pipeline.transforms.base import TRANSFORMS, TransformContext


@TRANSFORMS.register("affine")
class Affine:
    """A transform that zooms and moves the image on a canvas of unchanged size.

    Args:
        scale: the range of the zoom factor.
        translate: the maximum move along each axis, as a fraction of the side.
        min_visibility: the fraction of the area of an object inside the image, below which its box is dropped. Use the
            fraction below which the annotators left out objects at the border. An ignored region is kept.
    """

    def __init__(
        self,
        *,
        scale: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(in_order)] = (1.0, 1.0),
        translate: UnitFloat = 0.0,
        min_visibility: UnitFloat = 0.1,
    ):
        from detector.data.pipeline.transforms.library import affine  # the import of albumentations is slow

        self.operations = affine(scale, translate, min_visibility)

    def __call__(self, sample: Sample, context: TransformContext) -> Sample:
        """Return the zoomed and moved sample."""
        return self.operations(sample, context.rng)
