"""The contracts of classification and box losses."""

import torch
from torch import Tensor, nn

from detector.core.registry import Registry
from detector.kernels import elementwise_terms
from detector.kernels.reference import binary_targets, counted, widen


def one_over(count: Tensor | float, like: Tensor) -> Tensor:
    """1 / max(count, 1) as a 0-dim tensor on the device of `like` and in the format it is computed in, without a host
    sync."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if not torch.is_tensor(count):  # torch.as_tensor would copy it to the device, and wait
        count = torch.full((), count, device=like.device, dtype=dtype)
    return 1 / count.to(like.device, dtype).clamp(min=1)


def running_mean(mean: Tensor, steps: Tensor, value: Tensor, momentum: float, *, update: bool) -> Tensor:
    """The bias-corrected running mean S / (1 - m^t): S <- m S + (1 - m) value, from 0, over t steps. `mean` (S) and
    `steps` (t) are buffers, which move where `update`."""
    if update:
        steps += 1
        mean.lerp_(value, 1 - momentum)
    return mean / (1 - momentum ** steps.clamp(min=1))


class ClassificationLoss(nn.Module):
    """A loss over independent sigmoid classifiers.

    `loss(logits, labels, num_fg)`: logits (..., K) of any floating dtype; labels (...) int64 (0..K-1 a class, K
    background, -1 ignored); num_fg, a number or 0-dim tensor, is clamped to at least 1. Returns an fp32 scalar (fp64
    for fp64 logits): the sum over the elements of the rows that are not ignored / num_fg.

    Two keywords serve the losses that care: `level_sizes` splits the anchors (the last dimension of labels) into
    pyramid levels; `quality` (...), for losses that `use_quality`, is each foreground row's IoU of predicted and true
    box, 0..1, whatever elsewhere; None means 1.

    A subclass implements `split` and `elements`, or derives from `ElementwiseLoss`. It says of itself whether it is

    self_normalised  it divides by what it counts itself and leaves num_fg alone;
    use_quality      its foreground target is the quality;
    mines            it chooses for itself which rows count;
    row_additive     a row's part depends on no other row.
    """

    self_normalised = False
    use_quality = False
    mines = False
    row_additive = True

    def split(self, logits: Tensor, labels: Tensor, num_fg: Tensor | float, level_sizes=None, quality=None) -> Tensor:
        """(2,): the loss of the foreground elements (binary target 1) and of the background elements (target 0)."""
        raise NotImplementedError

    def elements(self, logits: Tensor, labels: Tensor, level_sizes=None, quality=None) -> Tensor:
        """(..., K) fp32 or fp64, for the instruments: each element's part of `split` for num_fg = 1, in eval mode; 0 in
        ignored rows. It changes no buffer."""
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
        return self.split(logits, labels, num_fg, level_sizes=level_sizes, quality=quality).sum()


CLASSIFICATION_LOSSES: Registry[ClassificationLoss] = Registry("classification loss")


class ElementwiseLoss(ClassificationLoss):
    """A loss that is a function of each logit and its binary target alone, without parameters to learn: implement
    `elementwise`."""

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (..., K) fp32 or fp64, targets (..., K) bool -> losses (..., K)."""
        raise NotImplementedError

    def split(self, logits: Tensor, labels: Tensor, num_fg: Tensor | float, level_sizes=None, quality=None) -> Tensor:
        return elementwise_terms(self.elementwise, logits, labels, scale=one_over(num_fg, logits))

    def elements(self, logits: Tensor, labels: Tensor, level_sizes=None, quality=None) -> Tensor:
        return counted(self.elementwise(widen(logits), binary_targets(labels, logits.shape[-1])), labels)


class BoxLoss(nn.Module):
    """A loss over the foreground anchors' boxes.

    `loss(predicted, target, foreground, num_fg)`: predicted and target (..., 4) offsets from the anchors (decoded xyxy
    boxes in pixels where `on_boxes`); foreground (...) bool; rows that are not foreground may hold anything. Returns a
    scalar: the sum over foreground rows / num_fg, num_fg clamped to at least 1; `self_normalised` as above.

    A subclass implements `elementwise`.
    """

    self_normalised = False
    on_boxes = False

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        """(..., 4) x (..., 4), finite, fp32 or fp64 -> (..., 4) or (...)."""
        raise NotImplementedError

    def forward(self, predicted: Tensor, target: Tensor, foreground: Tensor, num_fg: Tensor | float) -> Tensor:
        predicted, target = masked_boxes(predicted, target, foreground)
        losses = self.elementwise(predicted, target)
        foreground = foreground[..., None] if losses.ndim > foreground.ndim else foreground
        return losses.masked_fill(~foreground, 0).sum() * one_over(num_fg, predicted)


BOX_LOSSES: Registry[BoxLoss] = Registry("box loss")


def masked_boxes(predicted: Tensor, target: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """Both widened, with 1 where a row does not count: static shapes, and no inf or NaN reaches the loss."""
    away = ~foreground[..., None]
    return widen(predicted).masked_fill(away, 1), widen(target).masked_fill(away, 1)
