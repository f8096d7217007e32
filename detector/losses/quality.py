"""Losses whose foreground target is the quality of the box.

The score then predicts the IoU of the box with its object. Non-maximum suppression ranks the boxes by this score.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.core.structures import is_foreground
from detector.core.validation import NonNegativeFloat, PositiveFloat, UnitFloat
from detector.kernels import elementwise_terms
from detector.kernels.reference import binary_targets, counted, widen
from detector.losses.base import CLASSIFICATION_LOSSES, ClassificationLoss, one_over


class QualityLoss(ClassificationLoss):
    """A loss whose element depends on its logit, its binary target and the quality of its row.

    A subclass implements `elementwise`. A quality of None means 1.
    """

    use_quality = True

    def elementwise(self, logits: Tensor, targets: Tensor, quality: Tensor) -> Tensor:
        """Return the loss of each element, (..., K).

        Args:
            logits: (..., K) fp32 or fp64.
            targets: (..., K) bool, the binary targets.
            quality: (..., 1), 0 in the rows that are not foreground.
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
        quality = _on_foreground(quality, logits, labels)
        return elementwise_terms(self.elementwise, logits, labels, quality, scale=one_over(num_fg, logits))

    def elements(
        self, logits: Tensor, labels: Tensor, level_sizes: tuple[int, ...] | None = None, quality: Tensor | None = None
    ) -> Tensor:
        """Return the loss of each element. See `ClassificationLoss.elements`."""
        quality = _on_foreground(quality, logits, labels)[..., None]
        return counted(self.elementwise(widen(logits), binary_targets(labels, logits.shape[-1]), quality), labels)


def _on_foreground(quality: Tensor | None, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the quality (...), with 1 for None, and with 0 in the rows that are not foreground.

    Those rows may hold a NaN, which would reach the gradient through `torch.where`.
    """
    foreground = is_foreground(labels, logits.shape[-1])
    quality = foreground if quality is None else quality.where(foreground, 0)
    return quality.to(torch.promote_types(logits.dtype, torch.float32))


def _soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return -(y log p + (1 - y) log(1 - p)) for a target y in 0..1."""
    return F.softplus(logits, threshold=40) - target * logits


@CLASSIFICATION_LOSSES.register("quality_focal")
class QualityFocalLoss(QualityLoss):
    """Quality focal loss: focal loss for a continuous target, without alpha.

    Formula of an element: |y - p|^beta BCE(p, y), with y = the quality for target 1 and y = 0 for target 0
    (Li et al. 2020, "Generalized Focal Loss", equation 2). BCE(p, y) = -(y log p + (1 - y) log(1 - p)).

    Shapes: logits (..., K), labels (...) and quality (...), as in `ClassificationLoss.forward`.

    When to use: together with a box loss on the overlap (`iou`, `giou`, `diou`, `ciou`).

    Args:
        beta: the exponent. 0 gives cross entropy with the quality as target.
    """

    def __init__(self, *, beta: NonNegativeFloat = 2.0):
        super().__init__()
        self.beta = beta

    def elementwise(self, logits: Tensor, targets: Tensor, quality: Tensor) -> Tensor:
        """Return the loss of each element. See `QualityLoss.elementwise`."""
        target = torch.where(targets, quality, 0)
        # the derivative of a power below 1 is infinite at a distance of 0, and infinity times the loss of 0 is NaN
        distance = (target - logits.sigmoid()).abs().clamp(min=torch.finfo(logits.dtype).tiny)
        return distance**self.beta * _soft_cross_entropy(logits, target)


@CLASSIFICATION_LOSSES.register("varifocal")
class VarifocalLoss(QualityLoss):
    """Varifocal loss: only the background gets the small weights of focal loss.

    Formula of an element: q BCE(p, q) for target 1 and a quality q > 0, else -alpha p^gamma log(1 - p) (Zhang et al.
    2021, "VarifocalNet", equation 2). BCE(p, q) = -(q log p + (1 - q) log(1 - p)).

    Shapes: logits (..., K), labels (...) and quality (...), as in `ClassificationLoss.forward`.

    When to use: where the foreground is rare. It keeps its full gradient, and good boxes count more.

    Args:
        alpha: the weight of the background.
        gamma: the exponent of the background.
    """

    def __init__(self, *, alpha: UnitFloat = 0.75, gamma: NonNegativeFloat = 2.0):
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    def elementwise(self, logits: Tensor, targets: Tensor, quality: Tensor) -> Tensor:
        """Return the loss of each element. See `QualityLoss.elementwise`."""
        background = self.alpha * (self.gamma * F.logsigmoid(logits)).exp() * F.softplus(logits, threshold=40)
        return torch.where(targets & (quality > 0), quality * _soft_cross_entropy(logits, quality), background)


@CLASSIFICATION_LOSSES.register("mal")
class MatchabilityAwareLoss(QualityLoss):
    """Matchability-aware loss: cross entropy with a power of the quality, and focal loss for the background.

    Formula of an element: BCE(p, q^gamma) for target 1 and a quality q, and -p^gamma log(1 - p) for target 0 (Huang et
    al. 2024, "DEIM: DETR with Improved Matching for Fast Convergence"). BCE(p, y) = -(y log p + (1 - y) log(1 - p)).
    Unlike in varifocal loss, a match with a low quality keeps its full weight.

    Shapes: logits (..., K), labels (...) and quality (...), as in `ClassificationLoss.forward`.

    When to use: to compare with `varifocal`. The loss was made for detectors with few predictions (DETR). It is known
    to fail on dense heads with one prior for each object, so do not use it with such heads.

    Args:
        gamma: the exponent of the quality and of the background.
    """

    def __init__(self, *, gamma: PositiveFloat = 1.5):
        super().__init__()
        self.gamma = gamma

    def elementwise(self, logits: Tensor, targets: Tensor, quality: Tensor) -> Tensor:
        """Return the loss of each element. See `QualityLoss.elementwise`."""
        background = (self.gamma * F.logsigmoid(logits)).exp() * F.softplus(logits, threshold=40)
        return torch.where(targets, _soft_cross_entropy(logits, quality**self.gamma), background)
