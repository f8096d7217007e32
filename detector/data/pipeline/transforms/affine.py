"""The transform `affine`: the image is zoomed and moved."""

from typing import Annotated

from pydantic import AfterValidator

from detector.core.structures import Sample
from detector.core.validation import PositiveFloat, UnitFloat, in_order
from detector.data.pipeline.transforms.base import TRANSFORMS, TransformContext


@TRANSFORMS.register("affine")
class Affine:
    """Zoom and move the image on a canvas of unchanged size.

    scale: the range of the zoom factor. translate: the greatest move along each axis, a fraction of the side.
    min_visibility: a box is dropped where less than this fraction of its area is left in the image. Give the fraction
    below which the annotators left out objects at the border.
    """

    def __init__(
        self,
        *,
        scale: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(in_order)] = (1.0, 1.0),
        translate: UnitFloat = 0.0,
        min_visibility: UnitFloat = 0.1,
    ):
        from detector.data.pipeline.transforms.library import affine  # its import is slow

        self.operations = affine(scale, translate, min_visibility)

    def __call__(self, sample: Sample, context: TransformContext) -> Sample:
        return self.operations(sample, context.rng)
