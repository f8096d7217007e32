"""The criterion: it computes the loss terms from predictions and targets.

Only this module connects losses with priors and normalizers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detector.core.distributed import sum_over_ranks, world_size
from detector.core.registry import ChosenFrom, Part
from detector.core.structures import Predictions, Targets, is_foreground
from detector.core.validation import InvalidValues, NonNegativeFloat, Settings
from detector.geometry.boxes import paired_iou
from detector.losses.base import BOX_LOSSES, CLASSIFICATION_LOSSES, BoxLoss, ClassificationLoss, running_mean
from detector.losses.samplers import AnchorSampler

EMA_MOMENTUM = 0.9


@dataclass(frozen=True)
class BoxTerm:
    """A box loss that a config chooses, with the weight of its term."""

    loss: Part[BoxLoss]
    weight: float = 1.0


class BoxTerms(ChosenFrom):
    """An annotation for a field that takes a box loss, or a list of box losses.

    A loss in the list may have a `weight`, e.g. `giou`, or `[{type: giou, weight: 2.0}, {type: smooth_l1}]`.
    """

    def resolve(self, spec: Any, context: Any) -> tuple[BoxTerm, ...]:
        """Return the terms of a spec.

        Args:
            spec: the value of the field in the config.
            context: the validation context.

        Raises:
            InvalidValues: the spec of a loss is wrong, or the list is empty.
        """
        if not isinstance(spec, list):
            return (self._term(spec, context),)
        terms, problems = [], {}
        for i, each in enumerate(spec):
            try:
                terms.append(self._term(each, context))
            except InvalidValues as error:
                problems |= {(i, *path): text for path, text in error.problems.items()}
        if problems or not terms:
            raise InvalidValues(problems or {(): "[] is wrong: should name a box loss"})
        return tuple(terms)

    def to_plain(self, part: Any) -> Any:
        """Return the specs of the terms, as YAML holds them."""
        plain = [term.loss.to_dict() | ({} if term.weight == 1 else {"weight": term.weight}) for term in part]
        return plain[0] if len(plain) == 1 else plain

    def _term(self, spec: Any, context: Any) -> BoxTerm:
        if not isinstance(spec, dict) or "weight" not in spec:
            return BoxTerm(super().resolve(spec, context))
        weight = spec["weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise InvalidValues({("weight",): f"{weight!r} is wrong: should be a number of 0 or more"})
        loss = super().resolve({key: value for key, value in spec.items() if key != "weight"}, context)
        return BoxTerm(loss, float(weight))


class LossSettings(Settings):
    """The `loss` section of a config.

    Attributes:
        classification: the loss of the class scores.
        box: the box loss, or a list of box losses with weights.
        box_weight: a factor of all box terms.
        normaliser: the number that divides the losses. It is the foreground count of the step over all processes
            (global), of each process (local) or of each image (image), or the running mean of the global count (ema).
    """

    classification: Annotated[Part[ClassificationLoss], ChosenFrom(CLASSIFICATION_LOSSES, "focal")] = Field(
        "focal", validate_default=True
    )
    box: Annotated[tuple[BoxTerm, ...], BoxTerms(BOX_LOSSES, "smooth_l1")] = Field("smooth_l1", validate_default=True)
    box_weight: NonNegativeFloat = 1.0
    normaliser: Literal["global", "local", "image", "ema"] = "global"


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss terms of a batch.

    Attributes:
        weighted: 0-dim tensors by name. Their sum is the loss.
        parts: detached 0-dim tensors by name: `cls_fg` and `cls_bg`, whose sum is the term `cls`.
    """

    weighted: dict[str, Tensor]
    parts: dict[str, Tensor]

    def total(self) -> Tensor:
        """Return the sum of the terms."""
        return torch.stack(list(self.weighted.values())).sum()

    def detach(self) -> "LossTerms":
        """Return the same terms, detached from the graph."""
        return LossTerms({name: term.detach() for name, term in self.weighted.items()}, self.parts)

    def __truediv__(self, divisor: Tensor) -> "LossTerms":
        """Return all terms and parts divided by a number."""
        return LossTerms(*({name: x / divisor for name, x in group.items()} for group in (self.weighted, self.parts)))


class Criterion(nn.Module):
    """A module that computes the loss terms of a batch.

    The terms are `cls`, and `box` (or `box_<type>` for each of several box losses).

    The normalizer N divides the losses. It is the number of foreground priors. Where the assigner gives target
    qualities, N is the sum of the qualities of the foreground priors. N is clamped to at least 1 after the sum. The
    setting `normaliser` has these rules:

    - `global`: N of the optimizer step, over all ranks and accumulated batches.
    - `local`: N of the step on this rank. The losses of the ranks are averaged.
    - `image`: N of each image. The losses of the images are averaged, as in torchvision.
    - `ema`: the bias-corrected running mean of the global N over the training steps, in buffers. detectron2 has this
      rule too, but keeps a separate mean on each rank, and loses it on resume.

    Losses that are `self_normalised` ignore N. They are averaged over the batches of the step.
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
    ):
        """Build the criterion.

        Args:
            settings: the weights and the normalizer.
            classification: the loss of `settings.classification`.
            boxes: the losses of `settings.box`, in this order.
            sampler: the rule that chooses the priors that count.
            num_classes: K.
        """
        super().__init__()
        self.classification = classification
        self.boxes = nn.ModuleList(boxes)
        self.box_names = box_names(settings)
        self.box_weights = [term.weight * settings.box_weight for term in settings.box]
        self.sampler = sampler
        self.num_classes = num_classes
        self.normaliser = settings.normaliser
        if self.normaliser == "ema":
            self.register_buffer("mean_num_fg", torch.zeros(()))
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def divides_by_step(self) -> bool:
        """Whether a term is divided by a number that is known only after the last batch of a step."""
        return self.normaliser != "image" and not all(self._is_self_normalised())

    @property
    def can_divide_afterwards(self) -> bool:
        """Whether one division of the step's gradients is enough: all terms and all ranks have the same divisor."""
        shared = self.normaliser in ("global", "ema") or world_size() == 1
        return not self.divides_by_step or (shared and not any(self._is_self_normalised()))

    def _is_self_normalised(self) -> list[bool]:
        return [bool(loss.self_normalised) for loss in (self.classification, *self.boxes)]

    @property
    def term_names(self) -> list[str]:
        """The names of the loss terms."""
        return ["cls", *self.box_names]

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
        return running_mean(self.mean_num_fg, self.steps, num_fg, EMA_MOMENTUM, update=self.training)

    @torch.no_grad()
    def quality(self, predictions: Predictions, targets: Targets) -> Tensor | None:
        """Return the target scores (B, A) for a loss that uses them, else None.

        They are the qualities of the assigner, or else the IoU of the predicted and the matched box.
        """
        if not self.classification.use_quality:
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
        if self.sampler.needs_logits:
            targets = replace(targets, labels=self.sampler(targets.labels, predictions.logits))
        cls = self._classification(predictions, targets, normaliser, num_batches)
        cls_fg, cls_bg = cls.detach().unbind()
        weighted = {"cls": cls.sum()}
        for name, weight, loss in zip(self.box_names, self.box_weights, self.boxes, strict=True):
            assert isinstance(loss, BoxLoss)
            weighted[name] = self._box(loss, predictions, targets, normaliser, num_batches) * weight
        return LossTerms(weighted, {"cls_fg": cls_fg, "cls_bg": cls_bg})

    def _by_image(self, loss: nn.Module, targets: Targets) -> bool:
        return self.normaliser == "image" and not loss.self_normalised and len(targets.labels) > 0

    def _classification(
        self, predictions: Predictions, targets: Targets, normaliser: Tensor | float, num_batches: int
    ) -> Tensor:
        """Return the loss of the foreground and of the background elements, (2,)."""
        loss, labels, sizes = self.classification, targets.labels, predictions.priors.level_sizes
        quality = self.quality(predictions, targets)
        if self._by_image(loss, targets):
            qualities = [None] * len(labels) if quality is None else quality
            images = zip(predictions.logits, labels, self._count(targets), qualities, strict=True)
            losses = [loss.split(x, y, count, level_sizes=sizes, quality=q) for x, y, count, q in images]
            return torch.stack(losses).sum(dim=0) / (len(labels) * num_batches * world_size())
        value = loss.split(predictions.logits, labels, normaliser, level_sizes=sizes, quality=quality)
        return value / num_batches if loss.self_normalised else value

    def _box(
        self,
        loss: BoxLoss,
        predictions: Predictions,
        targets: Targets,
        normaliser: Tensor | float,
        num_batches: int,
    ) -> Tensor:
        foreground = is_foreground(targets.labels, self.num_classes)
        if loss.on_boxes:
            predicted, target = predictions.boxes, targets.boxes
        else:
            predicted, target = predictions.raw, predictions.coder.encode(targets.boxes, predictions.priors.boxes)
        if self._by_image(loss, targets):
            images = zip(predicted, target, foreground, self._count(targets), strict=True)
            total = torch.stack([loss(*image) for image in images]).sum()
            return total / (len(foreground) * num_batches * world_size())
        value = loss(predicted, target, foreground, normaliser)
        return value / num_batches if loss.self_normalised else value


def box_names(settings: LossSettings) -> list[str]:
    """Return the names of the box terms: `box` for a single loss, else `box_<type>`, numbered if a type repeats."""
    types = [term.loss.type for term in settings.box]
    if len(types) == 1:
        return ["box"]
    return [f"box_{name}" if types.count(name) == 1 else f"box_{name}_{i}" for i, name in enumerate(types)]
