"""The base classes of classification losses and box losses."""

import torch
from torch import Tensor, nn

from detector.core.registry import Registry
from detector.kernels import elementwise_terms
from detector.kernels.reference import binary_targets, counted, widen


def one_over(count: Tensor | float, like: Tensor) -> Tensor:
    """Return 1 / max(count, 1) as a 0-dim tensor, without a wait for the GPU.

    Args:
        count: a number, or a 0-dim tensor.
        like: the tensor that gives the device. The result has its dtype, or fp32 where that is half precision.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    if not torch.is_tensor(count):  # torch.as_tensor would copy it to the device, and wait
        count = torch.full((), count, device=like.device, dtype=dtype)
    return 1 / count.to(like.device, dtype).clamp(min=1)


def corrected_mean(mean: Tensor, steps: Tensor, momentum: float) -> Tensor:
    """Return the running mean without bias: S / (1 - momentum^t), or 0 before the first step.

    S starts at 0. Each step sets S <- momentum S + (1 - momentum) value.

    Args:
        mean: S, of any shape.
        steps: t, the number of steps: an integer tensor, 0-dim or in the shape of `mean`.
        momentum: the momentum, at least 0 and below 1.
    """
    return mean / (1 - momentum ** steps.clamp(min=1))


class ClassificationLoss(nn.Module):
    """A loss over K independent sigmoid classifiers.

    A subclass implements `split` and `elements`, or derives from `ElementwiseLoss`. An element is one logit. It has the
    binary target 1 if its class is the row's label, else 0.

    Attributes:
        self_normalised: the loss divides by a number that it counts itself, and ignores `num_fg`.
        use_quality: the target of a foreground element is the quality of its row.
        mines: the loss itself selects the rows that count.
        row_additive: the value of a row depends on no other row.
    """

    self_normalised = False
    use_quality = False
    mines = False
    row_additive = True

    def split(
        self,
        logits: Tensor,
        labels: Tensor,
        num_fg: Tensor | float,
        level_sizes: tuple[int, ...] | None = None,
        quality: Tensor | None = None,
    ) -> Tensor:
        """Return (2,): the loss of the foreground elements (target 1) and of the background elements (target 0).

        The arguments are those of `forward`.
        """
        raise NotImplementedError

    def elements(
        self, logits: Tensor, labels: Tensor, level_sizes: tuple[int, ...] | None = None, quality: Tensor | None = None
    ) -> Tensor:
        """Return the part of each element in `split` for num_fg = 1 in eval mode, for the measurements.

        The other arguments are those of `forward`. The method changes no buffer.

        Returns:
            (..., K) fp32, or fp64 for fp64 logits. Ignored rows have 0.
        """
        raise NotImplementedError

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        num_fg: Tensor | float,
        *,
        level_sizes: tuple[int, ...] | None = None,
        quality: Tensor | None = None,
    ) -> Tensor:
        """Return the loss: the sum over the elements of the rows that are not ignored, divided by `num_fg`.

        Args:
            logits: (..., K), of any floating dtype.
            labels: (...) int64: 0..K-1 is a class, K is background, -1 is ignored.
            num_fg: the number of foreground rows, a number or a 0-dim tensor. It is clamped to at least 1.
            level_sizes: the number of anchors of each pyramid level, in the last dimension of `labels`.
            quality: (...), the IoU 0..1 of the predicted box and the true box of each foreground row. Other rows may
                hold any value. None means 1. Only losses with `use_quality` read it.

        Returns:
            A 0-dim tensor, fp32, or fp64 for fp64 logits.
        """
        return self.split(logits, labels, num_fg, level_sizes=level_sizes, quality=quality).sum()


CLASSIFICATION_LOSSES: Registry[ClassificationLoss] = Registry("classification loss")


class ElementwiseLoss(ClassificationLoss):
    """A loss whose element depends only on its logit and its binary target, without learned parameters.

    A subclass implements `elementwise`.
    """

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each element, (..., K).

        Args:
            logits: (..., K) fp32 or fp64.
            targets: (..., K) bool, the binary targets.
        """
        raise NotImplementedError

    def split(
        self,
        logits: Tensor,
        labels: Tensor,
        num_fg: Tensor | float,
        level_sizes: tuple[int, ...] | None = None,
        quality: Tensor | None = None,
    ) -> Tensor:
        """Return the foreground and the background loss. See `ClassificationLoss.split`."""
        return elementwise_terms(self.elementwise, logits, labels, scale=one_over(num_fg, logits))

    def elements(
        self, logits: Tensor, labels: Tensor, level_sizes: tuple[int, ...] | None = None, quality: Tensor | None = None
    ) -> Tensor:
        """Return the loss of each element. See `ClassificationLoss.elements`."""
        return counted(self.elementwise(widen(logits), binary_targets(labels, logits.shape[-1])), labels)


class BoxLoss(nn.Module):
    """A loss over the boxes of the foreground anchors.

    A subclass implements `elementwise`.

    Attributes:
        self_normalised: the loss divides by a number that it counts itself, and ignores `num_fg`.
        on_boxes: the loss compares decoded boxes, xyxy in pixels. Other losses compare raw boxes.
        on_distributions: the raw boxes are logits of distributions, and their targets are probabilities. Other losses
            on raw boxes compare numbers, for example offsets from the anchors.
    """

    self_normalised = False
    on_boxes = False
    on_distributions = False

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each number, (..., 4), or of each box, (...).

        Args:
            predicted: (..., R), finite, fp32 or fp64.
            target: (..., R), finite, fp32 or fp64.
        """
        raise NotImplementedError

    def forward(
        self,
        predicted: Tensor,
        target: Tensor,
        foreground: Tensor,
        num_fg: Tensor | float,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, a 0-dim tensor: the weighted sum over the foreground rows, divided by `num_fg`.

        Args:
            predicted: (..., R), of any floating dtype: raw boxes, or boxes xyxy where `on_boxes`. R is 4, except where
                `on_distributions`.
            target: (..., R), the same for the true boxes.
            foreground: (...) bool. Rows that are not foreground may hold any value.
            num_fg: the number of foreground rows, a number or a 0-dim tensor. It is clamped to at least 1.
            weights: (...), the weight of each foreground row. Other rows may hold any value. None means 1.
        """
        predicted, target = masked_boxes(predicted, target, foreground)
        losses = self.elementwise(predicted, target)
        if weights is not None:
            weights = weights.where(foreground, 0)
            losses = losses * (weights[..., None] if losses.ndim > weights.ndim else weights)
        foreground = foreground[..., None] if losses.ndim > foreground.ndim else foreground
        return losses.masked_fill(~foreground, 0).sum() * one_over(num_fg, predicted)


BOX_LOSSES: Registry[BoxLoss] = Registry("box loss")


def masked_boxes(predicted: Tensor, target: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """Return both boxes in fp32 or fp64, with 1 in the rows that are not foreground.

    The shapes do not depend on the data, and no inf or NaN of a masked row reaches the loss.

    Args:
        predicted: (..., R).
        target: (..., R).
        foreground: (...) bool.
    """
    is_background = ~foreground[..., None]
    return widen(predicted).masked_fill(is_background, 1), widen(target).masked_fill(is_background, 1)
