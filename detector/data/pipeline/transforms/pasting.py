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
