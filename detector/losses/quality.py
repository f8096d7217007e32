"""Losses whose foreground target is the box's quality: the score learns to say how well the box fits, which is what
non-maximum suppression ranks by."""

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.core.structures import is_foreground
from detector.core.validation import NonNegativeFloat, UnitFloat
from detector.kernels import elementwise_terms
from detector.kernels.reference import binary_targets, counted, widen
from detector.losses.base import CLASSIFICATION_LOSSES, ClassificationLoss, one_over


class QualityLoss(ClassificationLoss):
    """An element-wise loss of logit, binary target and quality; without a quality it is 1."""

    use_quality = True

    def elementwise(self, logits: Tensor, targets: Tensor, quality: Tensor) -> Tensor:
        """logits (..., K) fp32 or fp64, targets (..., K) bool, quality (..., 1), 0 off the foreground -> (..., K)."""
        raise NotImplementedError

    def split(self, logits: Tensor, labels: Tensor, num_fg: Tensor | float, level_sizes=None, quality=None) -> Tensor:
        quality = _on_foreground(quality, logits, labels)
        return elementwise_terms(self.elementwise, logits, labels, quality, scale=one_over(num_fg, logits))

    def elements(self, logits: Tensor, labels: Tensor, level_sizes=None, quality=None) -> Tensor:
        quality = _on_foreground(quality, logits, labels)[..., None]
        return counted(self.elementwise(widen(logits), binary_targets(labels, logits.shape[-1]), quality), labels)


def _on_foreground(quality: Tensor | None, logits: Tensor, labels: Tensor) -> Tensor:
    """The quality (...), 1 where there is none, and 0 off the foreground: there it may be anything, and a NaN behind a
    `where` still reaches the gradient."""
    foreground = is_foreground(labels, logits.shape[-1])
    quality = foreground if quality is None else quality.where(foreground, 0)
    return quality.to(torch.promote_types(logits.dtype, torch.float32))


def _soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-(y log p + (1 - y) log(1 - p)) for a target y in 0..1."""
    return F.softplus(logits, threshold=40) - target * logits


@CLASSIFICATION_LOSSES.register("quality_focal")
class QualityFocalLoss(QualityLoss):
    """|y - p|^beta BCE(p, y), y the quality where the target is 1 and 0 elsewhere (Li et al. 2020, "Generalized Focal
    Loss", equation 4). Focal loss for a continuous target, without alpha. Use it with an IoU-family box loss."""

    def __init__(self, *, beta: NonNegativeFloat = 2.0):
        super().__init__()
        self.beta = beta

    def elementwise(self, logits: Tensor, targets: Tensor, quality: Tensor) -> Tensor:
        target = torch.where(targets, quality, 0)
        # at a distance of 0 the derivative of a power below one is infinite, and times the loss's own 0 not a number
        distance = (target - logits.sigmoid()).abs().clamp(min=torch.finfo(logits.dtype).tiny)
        return distance**self.beta * _soft_cross_entropy(logits, target)


@CLASSIFICATION_LOSSES.register("varifocal")
class VarifocalLoss(QualityLoss):
    """q BCE(p, q) where the target is 1 and the quality q is above 0, and -alpha p^gamma log(1 - p) elsewhere (Zhang et
    al. 2021, "VarifocalNet", equation 2). Only the background is focused: the rare foreground keeps its whole gradient,
    more of it for good boxes."""

    def __init__(self, *, alpha: UnitFloat = 0.75, gamma: NonNegativeFloat = 2.0):
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    def elementwise(self, logits: Tensor, targets: Tensor, quality: Tensor) -> Tensor:
        background = self.alpha * (self.gamma * F.logsigmoid(logits)).exp() * F.softplus(logits, threshold=40)
        return torch.where(targets & (quality > 0), quality * _soft_cross_entropy(logits, quality), background)
