"""Focal loss as the paper writes it, with autograd and a one-hot target: the yardstick of the fast kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def binary_targets(labels: Tensor, num_classes: int) -> Tensor:
    """labels (...) -> (..., K) bool, true where k == label."""
    return labels[..., None] == torch.arange(num_classes, device=labels.device)


def focal_terms(logits: Tensor, labels: Tensor, alpha: float | None, gamma: float, scale: Tensor) -> Tensor:
    """See `detector.kernels.focal_terms`."""
    target = binary_targets(labels, logits.shape[-1])
    wide = logits.double() if logits.dtype == torch.float64 else logits.float()
    signed = torch.where(target, -wide, wide)  # sigmoid(signed) = 1 - p_t
    elements = F.softplus(signed, threshold=40)
    if gamma != 0:
        # (1 - p_t)^gamma through its logarithm: the derivative of a power below one is infinite at 0
        elements = elements * (gamma * F.logsigmoid(signed)).exp()
    elements = elements.masked_fill((labels < 0)[..., None], 0)
    foreground = elements.masked_fill(~target, 0).sum()
    background = elements.masked_fill(target, 0).sum()
    if alpha is not None:
        foreground, background = foreground * alpha, background * (1 - alpha)
    return torch.stack((foreground, background)) * scale
