"""The library of image operations, albumentations. No other file knows it."""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from detector.core.structures import PADDING_COLOR, Sample

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask a server for its newest version at import
import albumentations


class GeometricOperations:
    """Operations in their order on a sample, the image and its boxes together.

    Boxes are clipped to the image. A box without area is dropped, and a box of which less than `min_visibility` of its
    area is left in the image.
    """

    def __init__(self, operations: Sequence[albumentations.BasicTransform], min_visibility: float = 0.0):
        self.compose = albumentations.Compose(
            list(operations),
            bbox_params=albumentations.BboxParams(
                format="pascal_voc",
                label_fields=["index"],
                clip=True,
                filter_invalid_bboxes=True,
                min_visibility=min_visibility,
            ),
        )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        _seed(self.compose, rng)
        out = self.compose(image=sample.image, bboxes=sample.boxes, index=np.arange(len(sample.boxes)))
        left = np.asarray(out["index"], dtype=np.int64)
        return replace(
            sample,
            image=out["image"],
            boxes=np.asarray(out["bboxes"], dtype=np.float32).reshape(-1, 4),
            labels=sample.labels[left],
            ignore=sample.ignore[left],
        )


class PixelOperations:
    """Operations in their order on the image alone. Boxes stay as they are."""

    def __init__(self, operations: Sequence[albumentations.BasicTransform]):
        self.compose = albumentations.Compose(list(operations))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        _seed(self.compose, rng)
        return replace(sample, image=self.compose(image=sample.image)["image"])


def flips(horizontal: float, vertical: float) -> GeometricOperations:
    """Return the flips along both axes, with their probabilities; see `Flip`."""
    return GeometricOperations([albumentations.HorizontalFlip(p=horizontal), albumentations.VerticalFlip(p=vertical)])


def affine(scale: tuple[float, float], translate: float, min_visibility: float) -> GeometricOperations:
    """Return a zoom with a move; see `Affine`."""
    move: dict[str, float | tuple[float, float]] = {axis: (-translate, translate) for axis in "xy"}
    zoom = albumentations.Affine(scale=scale, translate_percent=move, keep_ratio=True, fill=PADDING_COLOR, p=1)
    return GeometricOperations([zoom], min_visibility)


def color_jitter(brightness: float, contrast: float, saturation: float, hue: float) -> PixelOperations:
    """Return a change of the colors; see `Color`."""
    ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in (brightness, contrast, saturation)]
    jitter = albumentations.ColorJitter(
        brightness=ranges[0], contrast=ranges[1], saturation=ranges[2], hue=(-hue, hue), p=1
    )
    return PixelOperations([jitter])


def _seed(compose: albumentations.Compose, rng: np.random.Generator) -> None:
    """Draw the seed of albumentations' generator, whose state all loader workers would share."""
    compose.set_random_seed(int(rng.integers(2**32)))
