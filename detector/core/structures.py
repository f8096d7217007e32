"""What flows between the parts, as frozen dataclasses.

Shape letters: B images in a batch, H W pixels, G ground truths (padded), A anchors, K classes, N objects of one image.
Boxes are always `xyxy` (x1, y1, x2, y2) in pixels, continuous coordinates, x to the right and y down.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
from torch import Tensor, device, set_grad_enabled

PADDING_COLOR = (124, 116, 104)  # ImageNet's mean, which normalises to about 0
IGNORED = -1  # label of a prior that counts neither way, and of a padded ground truth


def is_foreground(labels: Tensor, num_classes: int) -> Tensor:
    """Return whether labels (...) int64 are those of a class: 0..K-1. Background is K, ignored is -1."""
    return (labels >= 0) & (labels < num_classes)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its annotations.

    image (H, W, 3) uint8 RGB; boxes (N, 4) float32 xyxy; labels (N,) int64 in 0..K-1;
    ignore (N,) bool, true for regions that must be neither foreground nor background (COCO crowds, VOC difficult);
    image_id, the data set's own; original_size (height, width) of the file, before any transform; unreadable, the
    errors of the images in whose place this one stands.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    image_id: int
    file_name: str
    original_size: tuple[int, int]
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The objects of a batch, padded to the same number: boxes (B, G, 4) float32 xyxy; labels (B, G) int64, -1 where
    padded; ignore (B, G) bool, true for regions that are neither foreground nor background."""

    boxes: Tensor
    labels: Tensor
    ignore: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded samples as tensors.

    images (B, 3, H, W) uint8 in channels-last memory; sizes (B, 2) int64 true (height, width) inside the padding;
    original_sizes (B, 2) int64; boxes (B, G, 4) float32 xyxy; labels (B, G) int64, -1 where padded;
    ignore (B, G) bool; image_ids and file_names, B of each; unreadable, the samples' errors.
    """

    images: Tensor
    sizes: Tensor
    original_sizes: Tensor
    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    image_ids: tuple[int, ...]
    file_names: tuple[str, ...]
    unreadable: tuple[str, ...] = ()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, with the padding."""
        height, width = self.images.shape[-2:]
        return height, width

    @property
    def truth(self) -> GroundTruth:
        return GroundTruth(self.boxes, self.labels, self.ignore)

    def to(self, target: device) -> "Batch":
        return self._map(lambda tensor: tensor.to(target, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """What a DataLoader calls, so that `to` a GPU need not wait."""
        return self._map(Tensor.pin_memory)

    def split(self, parts: int) -> "list[Batch]":
        """Its images in `parts` batches of equal size, or of sizes that differ by one."""
        ends = [len(self.image_ids) * i // parts for i in range(parts + 1)]

        def part(start: int, end: int) -> "Batch":
            names = {name: getattr(self, name)[start:end] for name in ("image_ids", "file_names")}
            return replace(self._map(lambda tensor: tensor[start:end]), **names)

        return [part(start, end) for start, end in pairwise(ends)] if parts > 1 else [self]

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = ("images", "sizes", "original_sizes", "boxes", "labels", "ignore")
        return replace(self, **{name: change(getattr(self, name)) for name in tensors})


class BoxCoder(Protocol):
    """Between boxes and the `num_outputs` numbers (R) that a head gives for each prior."""

    @property
    def num_outputs(self) -> int: ...

    def encode(self, boxes: Tensor, priors: Tensor) -> Tensor:
        """Turn boxes (..., 4) xyxy into what a head should give, (..., R)."""

    def decode(self, raw: Tensor, priors: Tensor) -> Tensor:
        """Turn what a head gives, (..., R), into boxes (..., 4) xyxy."""


@dataclass(frozen=True, slots=True)
class Priors:
    """The places that a head scores: boxes (A, 4) xyxy, the levels of the pyramid in turn; level_sizes, the number of
    priors of each level."""

    boxes: Tensor
    level_sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Predictions:
    """What the model predicts: logits (B, A, K); raw (B, A, R), the head's numbers for the boxes; priors, A of them;
    coder, which decodes boxes from `raw`."""

    logits: Tensor
    raw: Tensor
    priors: Priors
    coder: BoxCoder

    @cached_property
    def boxes(self) -> Tensor:
        """(B, A, 4) xyxy fp32, decoded when they are first asked for."""
        # also where that is under no_grad: a loss that asks later needs their gradient
        with set_grad_enabled(self.raw.requires_grad):
            return self.coder.decode(self.raw.float(), self.priors.boxes)


@dataclass(frozen=True, slots=True)
class Targets:
    """What the predictions should be.

    labels (B, A) int64, 0..K-1, K for background, -1 for ignored; boxes (B, A, 4) xyxy, the box of each prior's object
    (any finite box where the prior is not foreground); matched (B, A) int64, the index of that object in the ground
    truth (any valid index where the prior is not foreground); quality (B, A) in 0..1, the target score of foreground
    priors where the assigner gives one, else None: the losses then take 1 or the IoU of the predicted box.
    """

    labels: Tensor
    boxes: Tensor
    matched: Tensor
    quality: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Detections:
    """The detections of one image, best first: boxes (N, 4) xyxy, scores (N,) in 0..1, labels (N,) int64."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def cpu(self) -> "Detections":
        return Detections(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu())
