"""The focal and the harmonized loss with their gradients under torch.compile, in one pass over the logits.

The module works on each device that torch.compile supports. It needs a compiler. It compiles once for each dtype and
set of options.
"""

from functools import partial

import torch
from torch import Tensor

from detector.kernels.reference import (
    alpha_weights,
    binary_targets,
    elementwise_terms,
    gradient_dtype,
    gradient_norm_histogram,
    norm_bins,
    row_weights,
    widen,
)

__all__ = ["elementwise_terms", "focal_terms", "gradient_norm_histogram", "harmonized_terms"]


def _terms(wide: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross entropy and 1 - p_t of each logit, with a single exponential."""
    signed = torch.where(targets, -wide, wide)  # sigmoid(signed) = 1 - p_t
    small = (-signed.abs()).exp()
    return signed.clamp(min=0) + small.log1p(), torch.where(signed >= 0, 1, small) / (1 + small)


@torch.compile
def _focal(
    logits: Tensor,
    labels: Tensor,
    scale: Tensor,
    alpha: float | Tensor | None,
    class_weight: Tensor | None,
    gamma: float,
) -> tuple[Tensor, Tensor]:
    targets = binary_targets(labels, logits.shape[-1])
    loss, miss = _terms(widen(logits), targets)
    slope = miss
    if gamma != 0:
        slope = gamma * (1 - miss) * loss + miss
        power = miss * miss if gamma == 2 else miss**gamma
        loss, slope = loss * power, slope * power
    weight = scale
    if alpha is not None:
        weight = weight * alpha_weights(targets, alpha, loss.dtype)
    if class_weight is not None:
        weight = weight * row_weights(labels, class_weight)[..., None]
    return _sums_and_gradient(loss * weight, slope * weight, targets, labels, gradient_dtype(logits))


@torch.compile
def _harmonized(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    targets = binary_targets(labels, logits.shape[-1])
    loss, miss = _terms(widen(logits), targets)
    weight = weights[norm_bins(miss, len(weights))]
    return _sums_and_gradient(loss * weight, miss * weight, targets, labels, gradient_dtype(logits))


def _sums_and_gradient(
    loss: Tensor, slope: Tensor, targets: Tensor, labels: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    is_valid = (labels >= 0)[..., None]
    foreground = torch.where(targets & is_valid, loss, 0).sum()
    background = torch.where(~targets & is_valid, loss, 0).sum()
    grad = torch.where(is_valid, torch.where(targets, -slope, slope), 0)
    return torch.stack((foreground, background)), grad.to(dtype)


@torch.compile
def _scale(grad: Tensor, labels: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    return (grad * torch.where(binary_targets(labels, grad.shape[-1]), upstream[0], upstream[1])).to(dtype)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, compute) -> Tensor:
        labels = labels.int()  # a vector register holds as many int32 labels as fp32 logits
        sums, grad = compute(logits.detach(), labels)
        ctx.save_for_backward(grad, labels)
        ctx.dtype = logits.dtype
        return sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        grad, labels = ctx.saved_tensors
        # on a GPU, the comparison of upstream would wait
        if grad.device.type != "cpu" or (upstream != 1).any() or grad.dtype != ctx.dtype:
            grad = _scale(grad, labels, upstream, ctx.dtype)
        return grad, None, None


def focal_terms(
    logits: Tensor,
    labels: Tensor,
    alpha: float | Tensor | None,
    gamma: float,
    class_weight: Tensor | None,
    scale: Tensor,
) -> Tensor:
    """See `detector.kernels.focal_terms`."""
    compute = partial(_focal, scale=scale, alpha=alpha, class_weight=class_weight, gamma=gamma)
    return _Fused.apply(logits, labels, compute)


def harmonized_terms(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """See `detector.kernels.harmonized_terms`."""
    return _Fused.apply(logits, labels, partial(_harmonized, weights=weights))
