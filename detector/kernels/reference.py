"""The kernels as the papers write them, with autograd and a one-hot target: the yardstick of the fast ones."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.core.structures import is_foreground

Formula = Callable[..., Tensor]  # logits (..., K) fp32 or fp64, targets (..., K) bool, perhaps (..., 1) -> (..., K)


def binary_targets(labels: Tensor, num_classes: int) -> Tensor:
    """labels (...) -> (..., K) bool, true where k == label."""
    return labels[..., None] == torch.arange(num_classes, dtype=labels.dtype, device=labels.device)


def row_weights(labels: Tensor, class_weight: Tensor) -> Tensor:
    """labels (...) and class_weight (K,) -> (...): the weight of the row's class, 1 for background and ignored rows."""
    foreground = is_foreground(labels, len(class_weight))
    return class_weight[labels.where(foreground, 0)].where(foreground, 1)


def widen(tensor: Tensor) -> Tensor:
    """fp32 for half precision; fp32 and fp64 stay."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def gradient_dtype(logits: Tensor) -> torch.dtype:
    """What a gradient that waits for the backward pass is kept in: fp16 cannot hold one that its scaler has not yet
    enlarged."""
    return torch.float32 if logits.dtype == torch.float16 else logits.dtype


def counted(elements: Tensor, labels: Tensor) -> Tensor:
    """elements (..., K) with 0 in the rows that labels (...) leave out."""
    return elements.masked_fill((labels < 0)[..., None], 0)


def split_sums(elements: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """elements and targets (..., K) -> (2,): the sums over foreground and background elements of rows that count."""
    elements = counted(elements, labels)
    return torch.stack((elements.masked_fill(~targets, 0).sum(), elements.masked_fill(targets, 0).sum()))


def norm_bins(norms: Tensor, bins: int) -> Tensor:
    """The equal bin over [0, 1] of each norm; 1 belongs to the last, and NaN to the first."""
    return (norms * bins).nan_to_num(0).long().clamp(0, bins - 1)


def alpha_weights(targets: Tensor, alpha: float | Tensor, dtype: torch.dtype) -> Tensor:
    """alpha where the target is 1, 1 - alpha elsewhere."""
    if not torch.is_tensor(alpha):  # torch.as_tensor would copy it to the device, and wait
        alpha = torch.full((), alpha, dtype=dtype, device=targets.device)
    alpha = alpha.to(dtype)
    return torch.where(targets, alpha, 1 - alpha)


def focal_elements(wide: Tensor, targets: Tensor, alpha: float | Tensor | None, gamma: float | Tensor) -> Tensor:
    """The focal loss of each of the logits (..., K), fp32 or fp64, with targets (..., K) bool; alpha and gamma may be
    (K,)."""
    signed = torch.where(targets, -wide, wide)  # sigmoid(signed) = 1 - p_t
    elements = F.softplus(signed, threshold=40)
    if torch.is_tensor(gamma) or gamma != 0:
        # (1 - p_t)^gamma through its logarithm: the derivative of a power below one is infinite at 0
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


def harmonised_elements(wide: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The cross entropy of each of the logits (..., K), times the weight of the bin of its gradient norm."""
    signed = torch.where(targets, -wide, wide)
    return F.softplus(signed, threshold=40) * weights[norm_bins(signed.detach().sigmoid(), len(weights))]


def harmonised_terms(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """See `detector.kernels.harmonised_terms`."""
    targets = binary_targets(labels, logits.shape[-1])
    return split_sums(harmonised_elements(widen(logits), targets, weights), targets, labels)
