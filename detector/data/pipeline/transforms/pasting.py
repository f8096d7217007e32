"""Functions that combine samples: an image is pasted on another image, and the objects are listed together."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from detector.core.structures import Sample


def paste(canvas: np.ndarray, image: np.ndarray, corner: tuple[int, int], opacity: np.ndarray) -> None:
    """Blend an image into a canvas in place. The part of the image outside the canvas is left out.

    Args:
        canvas: (H, W, 3) uint8.
        image: (h, w, 3) uint8.
        corner: (x, y) of the upper left corner of the image on the canvas, in pixels.
        opacity: (h, w, 1) in 0..1, the weight of the image. The canvas has the weight 1 - opacity.
    """
    x, y = corner
    height, width = canvas.shape[:2]
    inside = np.s_[max(0, -y) : height - y, max(0, -x) : width - x]
    image, weight = image[inside], opacity[inside].astype(np.float32)
    region = canvas[max(0, y) :, max(0, x) :][: image.shape[0], : image.shape[1]]
    region[...] = np.rint(region + weight * (image.astype(np.float32) - region))


def move(part: Sample, corner: tuple[int, int], seen: tuple[int, int, int, int], min_visibility: float = 0.0) -> Sample:
    """Move the boxes of a sample, and clip the boxes to a rectangle.

    A box without area in the rectangle is dropped. The box of an object is also dropped if less than the fraction
    `min_visibility` of its area is in the rectangle. An ignored region is kept, because its pixels are no background.

    Args:
        part: the sample.
        corner: (x, y), which is added to all corners, in pixels.
        seen: the rectangle, xyxy in pixels.
        min_visibility: the minimum visible fraction of the area of an object.
    """
    moved = part.boxes + np.array(corner * 2, np.float32)
    clipped = moved.clip(np.tile(seen[:2], 2), np.tile(seen[2:], 2)).astype(np.float32)
    area, visible = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (moved, clipped))
    remains = (visible > 0) & (part.ignore | (visible >= min_visibility * area))
    return replace(part, boxes=clipped[remains], labels=part.labels[remains], ignore=part.ignore[remains])


def with_objects(sample: Sample, image: np.ndarray, parts: Sequence[Sample]) -> Sample:
    """Return the sample with another image and with the objects of all parts.

    Args:
        sample: the sample, whose id and file name remain.
        image: (H, W, 3) uint8 RGB.
        parts: samples whose boxes are in pixels of `image`.
    """
    return replace(
        sample,
        image=image,
        boxes=np.concatenate([part.boxes for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        ignore=np.concatenate([part.ignore for part in parts]),
    )
