"""The criterion: it computes the loss terms from predictions and targets.

Only this module connects losses with priors and normalizers.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from detector.core.distributed import sum_over_ranks, world_size
from detector.core.structures import BoxQuality, Predictions, Targets, is_foreground
from detector.geometry.boxes import paired_iou
from detector.losses.base import BoxLoss, ClassificationLoss, corrected_mean
from detector.losses.box_quality import BoxQualityLoss
from detector.losses.samplers import AnchorSampler
from detector.losses.settings import LossSettings, box_names
from detector.losses.terms import ONE_TO_MANY, LossTerms

EMA_MOMENTUM = 0.9


class Criterion(nn.Module):
    """A module that computes the loss terms of a batch.

    The terms are `cls`, and `box` (or `box_<type>` for each of several box losses). A head that predicts the quality of
    its boxes has the term `quality`.

    The normalizer N divides the losses. It is the number of foreground priors. Where the assigner gives target
    qualities, N is the sum of the qualities of the foreground priors. N is clamped to at least 1 after the sum. The
    setting `normaliser` has these rules:

    - `global`: N of the optimizer step, over all ranks and accumulated batches.
    - `local`: N of the step on this rank. The losses of the ranks are averaged.
    - `image`: N of each image. The losses of the images are averaged, as in torchvision.
    - `ema`: the bias-corrected running mean of the global N over the training steps, in buffers. detectron2 has this
      rule too, but keeps a separate mean on each rank, and loses it on resume.

    Losses that are `self_normalised` ignore N. They are averaged over the batches of the step.

    The setting `box_rows` weights each foreground prior in the box terms:

    - `equal`: the weight is 1.
    - `quality`: the weight is the quality of the assigner (Feng et al. 2021, "TOOD").
    - `score`: the weight is the highest class score of the prior, without gradient. The sum of the weights of the step
      over all ranks replaces N. It is clamped to at least 1 (Li et al. 2020, "Generalized Focal Loss", the authors'
      code). The sum is known only after the forward pass, so a step must be a single batch.

    Attributes:
        one_to_many: the criterion of the one-to-many head of a model with `one_to_one`, or None. Its running means are
            separate.
    """

    mean_num_fg: Tensor
    steps: Tensor

    def __init__(
        self,
        settings: LossSettings,
        classification: ClassificationLoss,
        boxes: Sequence[BoxLoss],
        sampler: AnchorSampler,
        num_classes: int,
        box_quality: BoxQuality | None = None,
        one_to_many: "Criterion | None" = None,
        warmup: ClassificationLoss | None = None,
    ):
        """Build the criterion.

        Args:
            settings: the weights and the normalizer.
            classification: the loss of `settings.classification`.
            boxes: the losses of `settings.box`, in this order.
            sampler: the rule that chooses the priors that count.
            num_classes: K.
            box_quality: the target of the box quality that the head predicts, or None if it predicts no box quality.
            one_to_many: the criterion of the one-to-many head of a model with `one_to_one`.
            warmup: the loss of `settings.warmup`, or None.
        """
        super().__init__()
        self.classification = classification
        self.warmup = warmup
        self.warmup_steps = 0 if warmup is None else settings.warmup_steps
        self.step = 0
        self.boxes = nn.ModuleList(boxes)
        self.box_names = box_names(settings)
        self.box_weights = [term.weight * settings.box_weight for term in settings.box]
        self.box_rows = settings.box_rows
        self.box_quality = None if box_quality is None else BoxQualityLoss(box_quality)
        self.quality_weight = settings.quality_weight
        self.sampler = sampler
        self.num_classes = num_classes
        self.normaliser = settings.normaliser
        self.one_to_many = one_to_many
        self.one_to_many_weights = settings.one_to_many_weight
        if self.normaliser == "ema":
            self.register_buffer("mean_num_fg", torch.zeros(()))
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def begin_step(self, step: int) -> None:
        """Choose the classification loss of an optimizer step.

        Args:
            step: the number of steps of the run before this step.
        """
        self.step = step
        if self.one_to_many is not None:
            self.one_to_many.begin_step(step)

    @property
    def active_classification(self) -> ClassificationLoss:
        """The classification loss of the current step: that of the warm-up in the first steps."""
        return self.classification if self.warmup is None or self.step >= self.warmup_steps else self.warmup

    @property
    def divides_by_step(self) -> bool:
        """Whether a term is divided by a number that is known only after the last batch of a step."""
        return self.normaliser != "image" and not all(self._self_normalised)

    @property
    def can_divide_afterwards(self) -> bool:
        """Whether one division of the step's gradients is enough: all terms and all ranks have the same divisor."""
        shared = self.normaliser in ("global", "ema") or world_size() == 1
        return not self.divides_by_step or (shared and not any(self._self_normalised))

    @property
    def _self_normalised(self) -> list[bool]:
        losses = (self.classification, self.warmup, *self.boxes, self.box_quality)
        return [bool(loss.self_normalised) for loss in losses if loss is not None]

    @property
    def needs_single_batch(self) -> bool:
        """Whether a step must be a single batch, because a divisor of the step is known only after its forward pass."""
        return self.box_rows == "score" or self.one_to_many is not None

    @property
    def term_names(self) -> list[str]:
        """The names of the loss terms."""
        names = ["cls", *self.box_names, *([] if self.box_quality is None else ["quality"])]
        return names if self.one_to_many is None else [*names, *(ONE_TO_MANY + name for name in names)]

    def one_to_many_weight(self, progress: float) -> float:
        """Return the weight of the loss of the one-to-many head. `progress` increases from 0 to 1 during the run."""
        first, last = self.one_to_many_weights
        return first + (last - first) * progress

    def sample(self, targets: Targets) -> Targets:
        """Return the targets after the sampler. A sampler that needs logits is applied later, in `forward`."""
        return targets if self.sampler.needs_logits else replace(targets, labels=self.sampler(targets.labels, None))

    def count_foreground(self, targets: Sequence[Targets]) -> Tensor:
        """Return the number of foreground priors, or the sum of their qualities, as a 0-dim fp32 tensor.

        Args:
            targets: the targets of all batches of an optimizer step on this rank.
        """
        return torch.stack([self._count(each).sum() for each in targets]).sum().float()

    def _count(self, targets: Targets) -> Tensor:
        """Return the part of each image in the normalizer, (B,)."""
        foreground = is_foreground(targets.labels, self.num_classes)
        return (foreground if targets.quality is None else targets.quality * foreground).sum(dim=1)

    def normalise(self, num_fg: Tensor) -> Tensor:
        """Return the number that divides the losses of an optimizer step. Call this once in each step.

        Args:
            num_fg: the result of `count_foreground`.
        """
        if self.normaliser == "local":
            return num_fg.clamp(min=1) * world_size()
        if self.normaliser == "image":
            return num_fg
        num_fg = sum_over_ranks(num_fg)
        if self.normaliser == "global":
            return num_fg
        if self.training:
            self.steps += 1
            self.mean_num_fg.lerp_(num_fg, 1 - EMA_MOMENTUM)
        return corrected_mean(self.mean_num_fg, self.steps, EMA_MOMENTUM)

    @torch.no_grad()
    def quality(self, predictions: Predictions, targets: Targets) -> Tensor | None:
        """Return the target scores (B, A) for a loss that uses them, else None.

        They are the qualities of the assigner, or else the IoU of the predicted and the matched box.
        """
        if not self.active_classification.use_quality:
            return None
        if targets.quality is not None:
            return targets.quality
        return paired_iou(predictions.boxes.detach(), targets.boxes)

    def forward(
        self, predictions: Predictions, targets: Targets, normaliser: Tensor | float, num_batches: int = 1
    ) -> LossTerms:
        """Return the loss terms of a batch.

        The sum of the terms over the ranks and the batches of an optimizer step is the loss of the step.

        Args:
            predictions: the predictions of the model.
            targets: the targets of the assigner, after `sample`.
            normaliser: the result of `normalise`.
            num_batches: the number of batches of the optimizer step on this rank.
        """
        assert num_batches == 1 or not self.needs_single_batch
        if self.sampler.needs_logits:
            targets = replace(targets, labels=self.sampler(targets.labels, predictions.logits))
        cls = self._classification(predictions, targets, normaliser, num_batches)
        cls_fg, cls_bg = cls.detach().unbind()
        weighted = {"cls": cls.sum()}
        weights, divisor = self._box_weights(predictions, targets)
        for name, weight, loss in zip(self.box_names, self.box_weights, self.boxes, strict=True):
            assert isinstance(loss, BoxLoss)
            boxes = self._boxes(loss, predictions, targets)
            if divisor is None:
                term = self._foreground_loss(loss, *boxes, targets, normaliser, num_batches, weights)
            else:
                term = loss(*boxes, is_foreground(targets.labels, self.num_classes), divisor, weights)
            weighted[name] = term * weight
        if self.box_quality is not None:
            quality = self.box_quality.rows(predictions, targets)
            term = self._foreground_loss(self.box_quality, *quality, targets, normaliser, num_batches)
            weighted["quality"] = term * self.quality_weight
        return LossTerms(weighted, {"cls_fg": cls_fg, "cls_bg": cls_bg})

    @torch.no_grad()
    def _box_weights(self, predictions: Predictions, targets: Targets) -> tuple[Tensor | None, Tensor | None]:
        """Return the weights (B, A) of the box terms, or None for 1, and their divisor, or None for the normalizer."""
        if self.box_rows == "quality":
            return targets.quality, None
        if self.box_rows == "score":
            scores = predictions.logits.detach().float().amax(dim=-1).sigmoid()
            is_fg = is_foreground(targets.labels, self.num_classes)
            return scores, sum_over_ranks(scores.where(is_fg, 0).sum())
        return None, None

    def _is_by_image(self, loss: nn.Module, targets: Targets) -> bool:
        return self.normaliser == "image" and not loss.self_normalised and len(targets.labels) > 0

    def _classification(
        self, predictions: Predictions, targets: Targets, normaliser: Tensor | float, num_batches: int
    ) -> Tensor:
        """Return the loss of the foreground and of the background elements, (2,)."""
        loss, labels, sizes = self.active_classification, targets.labels, predictions.priors.level_sizes
        quality = self.quality(predictions, targets)
        if self._is_by_image(loss, targets):
            qualities = [None] * len(labels) if quality is None else quality
            images = zip(predictions.logits, labels, self._count(targets), qualities, strict=True)
            losses = [loss.split(x, y, count, level_sizes=sizes, quality=q) for x, y, count, q in images]
            return torch.stack(losses).sum(dim=0) / (len(labels) * num_batches * world_size())
        value = loss.split(predictions.logits, labels, normaliser, level_sizes=sizes, quality=quality)
        return value / num_batches if loss.self_normalised else value

    def _boxes(self, loss: BoxLoss, predictions: Predictions, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the predicted and the true boxes in the form that a box loss compares."""
        if loss.on_boxes:
            return predictions.boxes, targets.boxes
        return predictions.raw, predictions.coder.encode(targets.boxes, predictions.priors.boxes)

    def _foreground_loss(
        self,
        loss: BoxLoss,
        predicted: Tensor,
        target: Tensor,
        targets: Targets,
        normaliser: Tensor | float,
        num_batches: int,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return a loss over the foreground rows, divided as the setting `normaliser` says."""
        foreground = is_foreground(targets.labels, self.num_classes)
        weighted = [] if weights is None else [weights]
        if self._is_by_image(loss, targets):
            images = zip(predicted, target, foreground, self._count(targets), *weighted, strict=True)
            total = torch.stack([loss(*image) for image in images]).sum()
            return total / (len(foreground) * num_batches * world_size())
        value = loss(predicted, target, foreground, normaliser, *weighted)
        return value / num_batches if loss.self_normalised else value
