"""The reference implementation of the kernels: the formulas of the papers, with autograd and a one-hot target."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.core.structures import is_foreground

Formula = Callable[..., Tensor]  # see `formula` of `detector.kernels.elementwise_terms`


def binary_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Return the binary targets (..., K) bool of labels (...) int64: true where the class is the label."""
    return labels[..., None] == torch.arange(num_classes, dtype=labels.dtype, device=labels.device)


def row_weights(labels: Tensor, class_weight: Tensor) -> Tensor:
    """Return the weight of each row, (...), with 1 for background and ignored rows.

    Args:
        labels: (...) int64.
        class_weight: (K,).
    """
    foreground = is_foreground(labels, len(class_weight))
    return class_weight[labels.where(foreground, 0)].where(foreground, 1)


def widen(tensor: Tensor) -> Tensor:
    """Return the tensor in fp32 if it is in half precision, else unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def gradient_dtype(logits: Tensor) -> torch.dtype:
    """Return the dtype of a gradient that the forward pass stores for the backward pass.

    For fp16 logits it is fp32, because fp16 cannot hold the gradient before the loss scaler multiplies it.
    """
    return torch.float32 if logits.dtype == torch.float16 else logits.dtype


def counted(elements: Tensor, labels: Tensor) -> Tensor:
    """Return the elements (..., K), with 0 in the rows whose label (...) is ignored."""
    return elements.masked_fill((labels < 0)[..., None], 0)


def split_sums(elements: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Return the foreground sum and the background sum of the rows that are not ignored, (2,).

    Args:
        elements: (..., K).
        targets: (..., K) bool.
        labels: (...) int64.
    """
    elements = counted(elements, labels)
    return torch.stack((elements.masked_fill(~targets, 0).sum(), elements.masked_fill(targets, 0).sum()))


def norm_bins(norms: Tensor, bins: int) -> Tensor:
    """Return the index of the equal bin over [0, 1] of each norm. 1 is in the last bin, and NaN in the first."""
    return (norms * bins).nan_to_num(0).long().clamp(0, bins - 1)


def alpha_weights(targets: Tensor, alpha: float | Tensor, dtype: torch.dtype) -> Tensor:
    """Return alpha where the target is 1, and 1 - alpha elsewhere.

    Args:
        targets: (..., K) bool.
        alpha: a number, or a tensor (K,).
        dtype: the dtype of the result.
    """
    if not torch.is_tensor(alpha):  # torch.as_tensor would copy it to the device, and wait
        alpha = torch.full((), alpha, dtype=dtype, device=targets.device)
    alpha = alpha.to(dtype)
    return torch.where(targets, alpha, 1 - alpha)


def focal_elements(wide: Tensor, targets: Tensor, alpha: float | Tensor | None, gamma: float | Tensor) -> Tensor:
    """Return the focal loss of each element, (..., K). See `detector.kernels.focal_terms` for the formula.

    Args:
        wide: (..., K) fp32 or fp64, the logits.
        targets: (..., K) bool.
        alpha: a number, a tensor (K,), or None for the weight 1.
        gamma: a number, or a tensor (K,).
    """
    signed = torch.where(targets, -wide, wide)  # sigmoid(signed) = 1 - p_t
    elements = F.softplus(signed, threshold=40)
    if torch.is_tensor(gamma) or gamma != 0:
        # the logarithm avoids the power itself: for gamma < 1 its derivative is infinite at 0
        elements = elements * (gamma * F.logsigmoid(signed)).exp()
    return elements if alpha is None else elements * alpha_weights(targets, alpha, wide.dtype)


def focal_terms(
    logits: Tensor,
    labels: Tensor,
    alpha: float | Tensor | None,
    gamma: float,
    class_weight: Tensor | None,
    scale: Tensor,
) -> Tensor:
    """See `detector.kernels.focal_terms`."""
    targets = binary_targets(labels, logits.shape[-1])
    elements = focal_elements(widen(logits), targets, alpha, gamma)
    if class_weight is not None:
        elements = elements * row_weights(labels, class_weight)[..., None]
    return split_sums(elements, targets, labels) * scale


def elementwise_terms(formula: Formula, logits: Tensor, labels: Tensor, extra: Tensor | None, scale: Tensor) -> Tensor:
    """See `detector.kernels.elementwise_terms`."""
    targets = binary_targets(labels, logits.shape[-1])
    elements = formula(widen(logits), targets, *([] if extra is None else [extra[..., None]]))
    return split_sums(elements, targets, labels) * scale


def gradient_norm_histogram(logits: Tensor, labels: Tensor, bins: int) -> Tensor:
    """See `detector.kernels.gradient_norm_histogram`."""
    signed = widen(logits.detach())
    signed = torch.where(binary_targets(labels, logits.shape[-1]), -signed, signed)
    return torch.bincount(norm_bins(signed[labels >= 0].sigmoid(), bins).flatten(), minlength=bins)


def harmonized_elements(wide: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the cross entropy of each element times the weight of the bin of its gradient norm, (..., K).

    Args:
        wide: (..., K) fp32 or fp64, the logits.
        targets: (..., K) bool.
        weights: (bins,).
    """
    signed = torch.where(targets, -wide, wide)
    return F.softplus(signed, threshold=40) * weights[norm_bins(signed.detach().sigmoid(), len(weights))]


def harmonized_terms(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """See `detector.kernels.harmonized_terms`."""
    targets = binary_targets(labels, logits.shape[-1])
    return split_sums(harmonized_elements(widen(logits), targets, weights), targets, labels)
