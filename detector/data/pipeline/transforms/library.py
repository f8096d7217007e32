"""Image operations of the library albumentations. No other file imports this library."""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from detector.core.structures import PADDING_COLOR, Sample

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise the import asks a server for the newest version
import albumentations


class GeometricOperations:
    """A sequence of operations on the image and its boxes.

    Boxes are clipped to the image. A box without area is dropped. The box of an object is also dropped if less than the
    fraction `min_visibility` of its area is inside the image. An ignored region is kept, because its pixels are no
    background.

    Args:
        operations: the operations, in their order.
        min_visibility: the minimum visible fraction of the area of an object.
    """

    def __init__(self, operations: Sequence[albumentations.BasicTransform], min_visibility: float = 0.0):
        self.for_objects = _with_boxes(operations, min_visibility)
        self.for_ignored = _with_boxes(operations, 0.0)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Apply the operations.

        Args:
            sample: the sample.
            rng: the generator of all random numbers.
        """
        seed = _draw_seed(rng)
        image, boxes, rows = _apply(self.for_objects, sample, np.flatnonzero(~sample.ignore), seed)
        if sample.ignore.any():  # albumentations has one limit for all boxes, so these boxes need a second call
            _, ignored_boxes, ignored_rows = _apply(self.for_ignored, sample, np.flatnonzero(sample.ignore), seed)
            boxes, rows = np.concatenate((boxes, ignored_boxes)), np.concatenate((rows, ignored_rows))
            order = rows.argsort()
            boxes, rows = boxes[order], rows[order]
        return replace(sample, image=image, boxes=boxes, labels=sample.labels[rows], ignore=sample.ignore[rows])


class PixelOperations:
    """A sequence of operations that change only the pixels.

    Args:
        operations: the operations, in their order.
    """

    def __init__(self, operations: Sequence[albumentations.BasicTransform]):
        self.compose = albumentations.Compose(list(operations))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Apply the operations to the image. Boxes are unchanged.

        Args:
            sample: the sample.
            rng: the generator of all random numbers.
        """
        self.compose.set_random_seed(_draw_seed(rng))
        return replace(sample, image=self.compose(image=sample.image)["image"])


def flips(horizontal: float, vertical: float) -> GeometricOperations:
    """Return the operations of `Flip`."""
    return GeometricOperations([albumentations.HorizontalFlip(p=horizontal), albumentations.VerticalFlip(p=vertical)])


def affine(scale: tuple[float, float], translate: float, min_visibility: float) -> GeometricOperations:
    """Return the operations of `Affine`."""
    move: dict[str, float | tuple[float, float]] = {axis: (-translate, translate) for axis in "xy"}
    zoom = albumentations.Affine(scale=scale, translate_percent=move, keep_ratio=True, fill=PADDING_COLOR, p=1)
    return GeometricOperations([zoom], min_visibility)


def color_jitter(brightness: float, contrast: float, saturation: float, hue: float) -> PixelOperations:
    """Return the operations of `Color`."""
    ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in (brightness, contrast, saturation)]
    jitter = albumentations.ColorJitter(
        brightness=ranges[0], contrast=ranges[1], saturation=ranges[2], hue=(-hue, hue), p=1
    )
    return PixelOperations([jitter])


def _with_boxes(operations: Sequence[albumentations.BasicTransform], min_visibility: float) -> albumentations.Compose:
    return albumentations.Compose(
        list(operations),
        bbox_params=albumentations.BboxParams(
            format="pascal_voc",
            label_fields=["index"],
            clip=True,
            filter_invalid_bboxes=True,
            min_visibility=min_visibility,
        ),
    )


def _apply(
    compose: albumentations.Compose, sample: Sample, rows: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the changed image, the changed boxes (M, 4) of the given rows, and the rows (M,) that remain."""
    compose.set_random_seed(seed)
    out = compose(image=sample.image, bboxes=sample.boxes[rows], index=rows)
    boxes = np.asarray(out["bboxes"], dtype=np.float32).reshape(-1, 4)
    return out["image"], boxes, np.asarray(out["index"], dtype=np.int64)


def _draw_seed(rng: np.random.Generator) -> int:
    """Draw the seed of albumentations, whose generator all loader workers would otherwise share."""
    return int(rng.integers(2**32))
