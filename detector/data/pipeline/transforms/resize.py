"""The size of images: the implicit first step of every sample."""

from dataclasses import replace

import cv2
import numpy as np

from detector.core.structures import Sample


def target_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Return (height, width) with the shorter side at `short_side`, or less where the longer side would pass
    `long_side`."""
    scale = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(sample: Sample, height: int, width: int) -> Sample:
    """Resample the image to (height, width). Boxes follow exactly, each axis by its own factor."""
    old_height, old_width = sample.image.shape[:2]
    if (old_height, old_width) == (height, width):
        return sample
    shrinks = height * width < old_height * old_width
    image = cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return replace(sample, image=image, boxes=resize_boxes(sample.boxes, (old_height, old_width), (height, width)))


def resize_boxes(boxes: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Move boxes (N, 4) xyxy of an image of the size `old` (height, width) to an image of the size `new`."""
    return boxes * np.array([new[1] / old[1], new[0] / old[0]] * 2, dtype=np.float32)


class Resize:
    """A resize to one shorter side, or to a shorter side drawn uniformly from a range (multi-scale training)."""

    def __init__(self, short_side: int | tuple[int, int], long_side: int):
        self.low, self.high = (short_side, short_side) if isinstance(short_side, int) else short_side
        self.long_side = long_side

    def draw_side(self, rng: np.random.Generator) -> int:
        """Draw the shorter side of a sample, in pixels."""
        return int(rng.integers(self.low, self.high + 1))

    def __call__(self, sample: Sample, short_side: int) -> Sample:
        return resize(sample, *target_size(*sample.image.shape[:2], short_side, self.long_side))
