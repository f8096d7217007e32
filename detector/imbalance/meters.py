"""Live meters: what each training step's imbalance looks like, as device tensors without a host sync."""

import torch
from torch import Tensor


def foreground_gradient_share(gradient: Tensor, labels: Tensor) -> Tensor:
    """The part of sum |d loss / d logit| that falls on foreground elements (binary target 1), 0..1, as a 0-dim tensor.

    gradient (..., K); labels (...) int64, 0..K-1 where the anchor is foreground.
    """
    num_classes = gradient.shape[-1]
    foreground = (labels >= 0) & (labels < num_classes)
    own = gradient.gather(-1, labels.clamp(0, num_classes - 1)[..., None])[..., 0]
    share = own.abs().float().masked_fill(~foreground, 0).sum()
    return share / gradient.abs().sum(dtype=torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
