"""The transform `mosaic`, which combines four images."""

from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from detector.core.structures import PADDING_COLOR, Sample
from detector.core.validation import PositiveFloat, UnitFloat, in_order
from detector.data.pipeline.transforms.base import TRANSFORMS, OccasionalTransform, TransformContext
from detector.data.pipeline.transforms.pasting import move, with_objects
from detector.data.pipeline.transforms.resize import resize

CENTERS = (0.25, 0.75)  # the range of the center, as fractions of the side


@TRANSFORMS.register("mosaic")
class Mosaic(OccasionalTransform):
    """A transform that combines the image with three other images (Bochkovskiy et al. 2020, YOLOv4).

    The result has the size (H, W) of the sample. A center (x, y) is drawn uniformly from W/4..3W/4 and H/4..3H/4, and a
    zoom factor from `scale`. The four images are resized by this factor. Each image touches the center with a corner:
    the sample is at the upper left, and three drawn samples are at the upper right, the lower left and the lower
    right. The part of an image outside its quarter is cut off. Pixels without an image have the padding color.

    Boxes are clipped to the visible part of their image. A box without visible area is dropped. An object is dropped,
    as in `affine`, if less than the fraction `min_visibility` of its area is visible. An ignored region is kept.

    When to use: for small data sets, and where objects should be smaller and more frequent in an image. Put `mosaic`
    first, so that the later transforms change all four images. A mosaic reads four images, so loading takes about
    five times as long.

    Args:
        probability: the probability that a sample is changed.
        until: the fraction of the run after which no sample is changed.
        scale: the range of the zoom factor. With 0.5, an image is about as large as its quarter.
        min_visibility: the visible fraction of the area of a box, below which the box is dropped.
    """

    def __init__(
        self,
        *,
        probability: UnitFloat = 1.0,
        until: UnitFloat = 0.9,
        scale: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(in_order)] = (0.5, 1.0),
        min_visibility: UnitFloat = 0.1,
    ):
        super().__init__(probability, until)
        self.scale = scale
        self.min_visibility = min_visibility

    def change(self, sample: Sample, context: TransformContext) -> Sample:
        """Return the mosaic of the sample and three drawn samples."""
        height, width = sample.image.shape[:2]
        x, y = np.rint(context.rng.uniform(*CENTERS, size=2) * (width, height)).astype(int).tolist()
        zoom = context.rng.uniform(*self.scale)
        image = np.empty_like(sample.image)
        image[:] = PADDING_COLOR
        parts = []
        for quarter, part in enumerate((sample, context.draw(), context.draw(), context.draw())):
            h, w = (max(1, round(side * zoom)) for side in part.image.shape[:2])
            part = resize(part, h, w)
            left, top = x - w * (quarter in (0, 2)), y - h * (quarter in (0, 1))
            x1, y1, x2, y2 = max(0, left), max(0, top), min(width, left + w), min(height, top + h)
            image[y1:y2, x1:x2] = part.image[y1 - top : y2 - top, x1 - left : x2 - left]
            parts.append(move(part, (left, top), (x1, y1, x2, y2), self.min_visibility))
        return with_objects(sample, image, parts)
