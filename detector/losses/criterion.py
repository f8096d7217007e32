"""Predictions and targets to loss terms: the one place where losses meet anchors and normalisers."""

from typing import Literal

import torch
from torch import Tensor, nn

from detector.distributed import sum_over_ranks
from detector.geometry.boxes import decode, encode
from detector.losses.base import BoxLoss, ClassificationLoss
from detector.structures import Predictions, Targets

Normaliser = Literal["global", "local", "image"]


class Criterion(nn.Module):
    """Loss terms of a batch.

    The normaliser num_fg is the number of foreground anchors: `global`, of the whole optimiser step, all ranks and
    accumulated batches; `local`, of this rank's step; `image`, of each image, the images' losses being averaged
    (torchvision's rule). It is clamped to at least 1 after the sum. Losses that are `self_normalised` are means.
    """

    def __init__(
        self,
        classification: ClassificationLoss,
        box: BoxLoss,
        *,
        num_classes: int,
        box_weight: float,
        normaliser: Normaliser,
    ):
        super().__init__()
        self.classification = classification
        self.box = box
        self.num_classes = num_classes
        self.box_weight = box_weight
        self.normaliser = normaliser

    def is_foreground(self, labels: Tensor) -> Tensor:
        return (labels >= 0) & (labels < self.num_classes)

    def count_foreground(self, targets: list[Targets]) -> Tensor:
        """Foreground anchors of one optimiser step's batches: a 0-dim fp32 tensor, summed over ranks where global."""
        count = torch.stack([self.is_foreground(t.labels).sum() for t in targets]).sum().float()
        return sum_over_ranks(count) if self.normaliser == "global" else count

    def forward(
        self, predictions: Predictions, targets: Targets, num_fg: Tensor, num_batches: int = 1
    ) -> dict[str, Tensor]:
        """`cls` and `box`, scalars whose sum over the `num_batches` batches of an optimiser step is its loss, and the
        detached parts `cls_fg` and `cls_bg` of `cls`. num_fg comes from `count_foreground` over those batches."""
        foreground = self.is_foreground(targets.labels)
        anchors = predictions.anchors
        if self.box.on_boxes:
            predicted, target = decode(predictions.deltas.float(), anchors), targets.boxes
        else:
            predicted, target = predictions.deltas, encode(targets.boxes, anchors)
        if self.normaliser == "image":
            num_images = len(targets.labels)
            counts = foreground.sum(dim=1)
            cls = torch.stack(
                [
                    self.classification.split(*one, level_sizes=predictions.level_sizes)
                    for one in zip(predictions.logits, targets.labels, counts, strict=True)
                ]
            ).sum(dim=0) / (num_images * num_batches)
            box = torch.stack(
                [self.box(*one) for one in zip(predicted, target, foreground, counts, strict=True)]
            ).sum() / (num_images * num_batches)
        else:
            cls = self.classification.split(
                predictions.logits, targets.labels, num_fg, level_sizes=predictions.level_sizes
            )
            box = self.box(predicted, target, foreground, num_fg)
            cls = cls / num_batches if self.classification.self_normalised else cls
            box = box / num_batches if self.box.self_normalised else box
        cls_fg, cls_bg = cls.detach().unbind()
        return {"cls": cls.sum(), "box": box * self.box_weight, "cls_fg": cls_fg, "cls_bg": cls_bg}
