"""Predictions and targets to loss terms: the one place where losses meet anchors and normalisers."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from detector.core.distributed import sum_over_ranks, world_size
from detector.core.structures import Predictions, Targets
from detector.geometry.boxes import paired_iou
from detector.losses.base import BoxLoss, ClassificationLoss, running_mean
from detector.losses.samplers import AnchorSampler

Normaliser = Literal["global", "local", "image", "ema"]
EMA_MOMENTUM = 0.9


class Criterion(nn.Module):
    """Loss terms of a batch.

    The normaliser num_fg is the number of foreground anchors: `global`, of the whole optimiser step, all ranks and
    accumulated batches; `local`, of this rank's step, and their losses averaged; `image`, of each image, likewise
    (torchvision's rule); `ema`, the bias-corrected running mean of the global count over the training steps, in buffers
    (detectron2's rule, which keeps it on each rank and loses it on resume). It is clamped to at least 1 after the sum.
    Losses that are `self_normalised` are means. The sampler says which anchors count.
    """

    def __init__(
        self,
        classification: ClassificationLoss,
        box: BoxLoss,
        sampler: AnchorSampler,
        *,
        num_classes: int,
        box_weight: float,
        normaliser: Normaliser,
    ):
        super().__init__()
        self.classification = classification
        self.box = box
        self.sampler = sampler
        self.num_classes = num_classes
        self.box_weight = box_weight
        self.normaliser = normaliser
        if normaliser == "ema":
            self.register_buffer("mean_num_fg", torch.zeros(()))
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def is_foreground(self, labels: Tensor) -> Tensor:
        return (labels >= 0) & (labels < self.num_classes)

    def sample(self, targets: Targets) -> Targets:
        """The targets whose anchors count, as far as that is known before the forward pass."""
        return targets if self.sampler.needs_logits else replace(targets, labels=self.sampler(targets.labels, None))

    def count_foreground(self, targets: list[Targets]) -> Tensor:
        """Foreground anchors of this rank's batches of one optimiser step: a 0-dim fp32 tensor."""
        return torch.stack([self.is_foreground(t.labels).sum() for t in targets]).sum().float()

    def normalise(self, num_fg: Tensor) -> Tensor:
        """What an optimiser step of this foreground count divides its losses by; to be asked once a step."""
        if self.normaliser == "local":
            return num_fg.clamp(min=1) * world_size()
        if self.normaliser == "image":
            return num_fg
        num_fg = sum_over_ranks(num_fg)
        if self.normaliser == "global":
            return num_fg
        return running_mean(self.mean_num_fg, self.steps, num_fg, EMA_MOMENTUM, update=self.training)

    @torch.no_grad()
    def quality(self, predictions: Predictions, targets: Targets) -> Tensor | None:
        """(B, A) the IoU of predicted and matched box, for the losses that use it."""
        if not self.classification.use_quality:
            return None
        return paired_iou(predictions.boxes.detach(), targets.boxes)

    def forward(
        self, predictions: Predictions, targets: Targets, num_fg: Tensor, num_batches: int = 1
    ) -> dict[str, Tensor]:
        """`cls` and `box`, scalars whose sum over the ranks and their `num_batches` batches of an optimiser step is its
        loss, and the detached parts `cls_fg` and `cls_bg` of `cls`. num_fg comes from `normalise`."""
        labels = targets.labels
        if self.sampler.needs_logits:
            labels = self.sampler(labels, predictions.logits)
        foreground = self.is_foreground(labels)
        quality = self.quality(predictions, targets)
        if self.box.on_boxes:
            predicted, target = predictions.boxes, targets.boxes
        else:
            predicted, target = predictions.raw, predictions.coder.encode(targets.boxes, predictions.priors)
        num_images = len(labels) * num_batches * world_size()
        by_image = self.normaliser == "image" and num_images > 0
        counts = foreground.sum(dim=1) if by_image else None
        if by_image and not self.classification.self_normalised:
            qualities = [None] * len(labels) if quality is None else quality
            cls = (
                torch.stack(
                    [
                        self.classification.split(*one, level_sizes=predictions.level_sizes, quality=q)
                        for *one, q in zip(predictions.logits, labels, counts, qualities, strict=True)
                    ]
                ).sum(dim=0)
                / num_images
            )
        else:
            cls = self.classification.split(
                predictions.logits, labels, num_fg, level_sizes=predictions.level_sizes, quality=quality
            )
            cls = cls / num_batches if self.classification.self_normalised else cls
        if by_image and not self.box.self_normalised:
            images = zip(predicted, target, foreground, counts, strict=True)
            box = torch.stack([self.box(*one) for one in images]).sum() / num_images
        else:
            box = self.box(predicted, target, foreground, num_fg)
            box = box / num_batches if self.box.self_normalised else box
        cls_fg, cls_bg = cls.detach().unbind()
        return {"cls": cls.sum(), "box": box * self.box_weight, "cls_fg": cls_fg, "cls_bg": cls_bg}
