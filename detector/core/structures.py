"""The data that the parts exchange, as frozen dataclasses.

Letters of shapes: B images in a batch, H x W pixels, G ground truths (padded), A anchors, K classes, N objects of an
image. Boxes are `xyxy` (x1, y1, x2, y2) in pixels. Coordinates are continuous, x points to the right, and y down.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, device, set_grad_enabled

PADDING_COLOR = (124, 116, 104)  # the mean of ImageNet, which is about 0 after normalization
BoxQuality = Literal["centerness", "iou"]  # the target of the quality that a head predicts for each box
IGNORED = -1  # the label of a padded ground truth, and of a prior that is neither foreground nor background


def is_foreground(labels: Tensor, num_classes: int) -> Tensor:
    """Return which labels are labels of a class.

    Args:
        labels: (...) int64, 0..K-1 for a class, K for background, -1 for ignored.
        num_classes: K.

    Returns:
        (...) bool.
    """
    return (labels >= 0) & (labels < num_classes)


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its annotations.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) float32 xyxy.
        labels: (N,) int64 in 0..K-1.
        ignore: (N,) bool, true for a region that is neither foreground nor background (COCO's crowds, VOC's difficult
            objects).
        image_id: the id of the image in its data set.
        file_name: the file of the image.
        original_size: (height, width) of the file in pixels, before any transform.
        unreadable: the errors of the images that this image replaces.
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
    """The objects of a batch, padded to the same number for each image.

    Attributes:
        boxes: (B, G, 4) float32 xyxy.
        labels: (B, G) int64, -1 for padding.
        ignore: (B, G) bool, true for a region that is neither foreground nor background.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor

    @property
    def is_object(self) -> Tensor:
        """Whether a ground truth is an object, (B, G) bool. Padding and ignore regions are not objects."""
        return (self.labels >= 0) & ~self.ignore


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded samples as tensors.

    Attributes:
        images: (B, 3, H, W) uint8 in channels-last memory.
        sizes: (B, 2) int64, the (height, width) of each image without the padding, in pixels.
        original_sizes: (B, 2) int64, the (height, width) of each file, in pixels.
        boxes: (B, G, 4) float32 xyxy.
        labels: (B, G) int64, -1 for padding.
        ignore: (B, G) bool, as in `GroundTruth`.
        image_ids: the B ids of the images.
        file_names: the B files of the images.
        unreadable: the errors of the images that samples of the batch replace.
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
        """The height and width in pixels, with the padding."""
        height, width = self.images.shape[-2:]
        return height, width

    @property
    def truth(self) -> GroundTruth:
        """The objects of the batch."""
        return GroundTruth(self.boxes, self.labels, self.ignore)

    def to(self, target: device) -> "Batch":
        """Return the batch on a device."""
        return self._map(lambda tensor: tensor.to(target, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return the batch in pinned memory, from which `to` copies to a GPU without waiting. A DataLoader calls it."""
        return self._map(Tensor.pin_memory)

    def split(self, parts: int) -> "list[Batch]":
        """Return the images in `parts` batches, whose sizes differ by at most 1."""
        ends = [len(self.image_ids) * i // parts for i in range(parts + 1)]

        def part(start: int, end: int) -> "Batch":
            names = {name: getattr(self, name)[start:end] for name in ("image_ids", "file_names")}
            return replace(self._map(lambda tensor: tensor[start:end]), **names)

        return [part(start, end) for start, end in pairwise(ends)] if parts > 1 else [self]

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = ("images", "sizes", "original_sizes", "boxes", "labels", "ignore")
        return replace(self, **{name: change(getattr(self, name)) for name in tensors})


class BoxCoder(Protocol):
    """A conversion between boxes and the R numbers that a head predicts for the box of each prior."""

    @property
    def num_outputs(self) -> int:
        """R, the number of predicted numbers for each prior."""
        ...

    def encode(self, boxes: Tensor, priors: Tensor) -> Tensor:
        """Convert boxes to the targets of the numbers that a head predicts.

        Args:
            boxes: (..., 4) xyxy.
            priors: (..., 4) xyxy.

        Returns:
            (..., R).
        """
        ...

    def decode(self, raw: Tensor, priors: Tensor) -> Tensor:
        """Convert the numbers that a head predicts to boxes.

        Args:
            raw: (..., R).
            priors: (..., 4) xyxy.

        Returns:
            (..., 4) xyxy.
        """
        ...


@dataclass(frozen=True, slots=True)
class Priors:
    """The prior boxes that a head scores, for example its anchors.

    Attributes:
        boxes: (A, 4) xyxy, level after level of the pyramid.
        level_sizes: the number of priors of each level.
        level_strides: the stride of each level in pixels. Rules that do not measure in strides work without them.
    """

    boxes: Tensor
    level_sizes: tuple[int, ...]
    level_strides: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def centers(self) -> Tensor:
        """The centers (A, 2) of the priors, in pixels."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    def strides(self) -> Tensor:
        """Return the stride of each prior in pixels, (A,), on the device of the priors."""
        levels = zip(self.level_sizes, self.level_strides, strict=True)
        return torch.cat([self.boxes.new_full((size,), stride) for size, stride in levels])


@dataclass(frozen=True)
class Predictions:
    """The predictions of the model.

    Attributes:
        logits: (B, A, K).
        raw: (B, A, R), the numbers that the head predicts for the boxes.
        priors: the A priors.
        coder: the coder that decodes boxes from `raw`.
        box_quality: (B, A), the logit of the quality of each box (center-ness or IoU), where the head predicts it.
        nms_free: the model was trained to detect each object once. The post-processing has no non-maximum suppression.
        one_to_many: in training, the predictions of the one-to-many head of a model with `one_to_one`.
    """

    logits: Tensor
    raw: Tensor
    priors: Priors
    coder: BoxCoder
    box_quality: Tensor | None = None
    nms_free: bool = False
    one_to_many: "Predictions | None" = None

    @cached_property
    def ranking_logits(self) -> Tensor:
        """The logits (B, A, K) of the scores that rank the detections.

        They are `logits` where the head predicts no box quality. Else the score is sqrt(p q), with the class
        probability p and the box quality q (torchvision's FCOS).
        """
        if self.box_quality is None:
            return self.logits
        logits, quality = self.logits.float(), self.box_quality.float()[..., None]
        # ONNX has no accurate logsigmoid and no expm1, so log(1 - s) is log(1 - s^2) - log(1 + s) with s^2 = p q
        log_p, log_q = -F.softplus(-logits), -F.softplus(-quality)
        log_score = (log_p + log_q) / 2
        log_rest = torch.logaddexp(-F.softplus(logits), log_p - F.softplus(quality)) - log_score.exp().log1p()
        return log_score - log_rest

    @cached_property
    def boxes(self) -> Tensor:
        """The boxes (B, A, 4) xyxy fp32, which are decoded at the first access."""
        # the first access may be under no_grad, but a later access of a loss needs the gradient
        with set_grad_enabled(self.raw.requires_grad):
            return self.coder.decode(self.raw.float(), self.priors.boxes)


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of the predictions.

    Attributes:
        labels: (B, A) int64, 0..K-1 for a class, K for background, -1 for ignored.
        boxes: (B, A, 4) xyxy, the box of the object of each prior. A prior that is not foreground has any finite box.
        matched: (B, A) int64, the index of that object in the ground truth. A prior that is not foreground has any
            valid index.
        quality: (B, A) in 0..1, the target score of each foreground prior. It is None where the assigner gives no
            target scores. Losses then use 1 or the IoU of the predicted box.
    """

    labels: Tensor
    boxes: Tensor
    matched: Tensor
    quality: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Detections:
    """The detections of an image, sorted by descending score.

    Attributes:
        boxes: (N, 4) xyxy.
        scores: (N,) in 0..1.
        labels: (N,) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def cpu(self) -> "Detections":
        """Return the detections on the CPU."""
        return Detections(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu())
