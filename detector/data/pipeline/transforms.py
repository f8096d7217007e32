"""What happens to a sample before it becomes part of a batch: resizing, flips, colour."""

import os
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from detector.core.structures import Sample

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask a server for its newest version at import
import albumentations

PADDING_COLOUR = (124, 116, 104)  # ImageNet's mean, which normalises to about 0

Transform = Callable[[Sample, np.random.Generator], Sample]


def target_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `short_side`, or less where the longer would pass `long_side`."""
    scale = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(sample: Sample, height: int, width: int) -> Sample:
    """The image resampled to (height, width); boxes follow exactly, each axis by its own factor."""
    old_height, old_width = sample.image.shape[:2]
    if (old_height, old_width) == (height, width):
        return sample
    shrinks = height * width < old_height * old_width
    image = cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return replace(sample, image=image, boxes=resize_boxes(sample.boxes, (old_height, old_width), (height, width)))


def resize_boxes(boxes: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """(N, 4) xyxy of an image of the size `old` (height, width) in one of the size `new`."""
    return boxes * np.array([new[1] / old[1], new[0] / old[0]] * 2, dtype=np.float32)


class Resize:
    """To one size, or to a shorter side drawn uniformly from a range (multi-scale training)."""

    def __init__(self, short_side: int | tuple[int, int], long_side: int):
        self.low, self.high = (short_side, short_side) if isinstance(short_side, int) else short_side
        self.long_side = long_side

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        short_side = int(rng.integers(self.low, self.high + 1))
        return resize(sample, *target_size(*sample.image.shape[:2], short_side, self.long_side))


class Augment:
    """On an unchanged canvas: flips with the given probabilities; zoom by a factor from the range `scale` and a move by
    up to `translate` of each side; colour factors drawn from 1 +- the given strengths (hue: a shift). Boxes are
    clipped, and dropped where less than `min_visibility` of their area is left in the picture."""

    def __init__(
        self,
        *,
        horizontal_flip: float,
        vertical_flip: float,
        scale: tuple[float, float],
        translate: float,
        min_visibility: float,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
    ):
        steps = [albumentations.HorizontalFlip(p=horizontal_flip), albumentations.VerticalFlip(p=vertical_flip)]
        if tuple(scale) != (1, 1) or translate:
            move = {axis: (-translate, translate) for axis in "xy"}
            steps.append(
                albumentations.Affine(
                    scale=tuple(scale), translate_percent=move, keep_ratio=True, fill=PADDING_COLOUR, p=1
                )
            )
        if brightness or contrast or saturation or hue:
            ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in (brightness, contrast, saturation)]
            steps.append(
                albumentations.ColorJitter(
                    brightness=ranges[0], contrast=ranges[1], saturation=ranges[2], hue=(-hue, hue), p=1
                )
            )
        self.compose = albumentations.Compose(
            steps,
            bbox_params=albumentations.BboxParams(
                format="pascal_voc",
                label_fields=["index"],
                clip=True,
                filter_invalid_bboxes=True,
                min_visibility=min_visibility,
            ),
        )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        # albumentations draws from its own generator, which copies in loader workers would share
        self.compose.set_random_seed(int(rng.integers(2**32)))
        out = self.compose(image=sample.image, bboxes=sample.boxes, index=np.arange(len(sample.boxes)))
        kept = np.asarray(out["index"], dtype=np.int64)
        return replace(
            sample,
            image=out["image"],
            boxes=np.asarray(out["bboxes"], dtype=np.float32).reshape(-1, 4),
            labels=sample.labels[kept],
            ignore=sample.ignore[kept],
        )
