"""The resize of images, which is the first step for every sample."""

from dataclasses import replace

import cv2
import numpy as np

from detector.core.structures import Sample


def target_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Return (height, width) of a resized image, in pixels.

    The shorter side becomes `short_side`, or less if the longer side would exceed `long_side`.

    Args:
        height: the height of the image.
        width: the width of the image.
        short_side: the shorter side of the resized image.
        long_side: the maximum of the longer side.
    """
    scale = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(sample: Sample, height: int, width: int) -> Sample:
    """Resize an image and its boxes. Each axis of the boxes is scaled by the exact factor of this axis.

    Args:
        sample: the sample.
        height: the new height in pixels.
        width: the new width in pixels.
    """
    old_height, old_width = sample.image.shape[:2]
    if (old_height, old_width) == (height, width):
        return sample
    shrinks = height * width < old_height * old_width
    image = cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return replace(sample, image=image, boxes=resize_boxes(sample.boxes, (old_height, old_width), (height, width)))


def resize_boxes(boxes: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Scale boxes to a resized image.

    Args:
        boxes: (N, 4) xyxy in pixels.
        old: (height, width) of the image before the resize.
        new: (height, width) of the image after the resize.
    """
    return boxes * np.array([new[1] / old[1], new[0] / old[0]] * 2, dtype=np.float32)


class Resize:
    """A resize to a fixed shorter side, or to a shorter side that is drawn uniformly from a range.

    Args:
        short_side: the shorter side in pixels, or its range (multi-scale training).
        long_side: the maximum of the longer side in pixels.
    """

    def __init__(self, short_side: int | tuple[int, int], long_side: int):
        self.low, self.high = (short_side, short_side) if isinstance(short_side, int) else short_side
        self.long_side = long_side

    def draw_side(self, rng: np.random.Generator) -> int:
        """Draw the shorter side of a sample, in pixels."""
        return int(rng.integers(self.low, self.high + 1))

    def __call__(self, sample: Sample, short_side: int) -> Sample:
        """Resize a sample.

        Args:
            sample: the sample.
            short_side: the shorter side in pixels, as `draw_side` returns it.
        """
        return resize(sample, *target_size(*sample.image.shape[:2], short_side, self.long_side))
