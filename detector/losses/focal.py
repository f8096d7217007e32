"""Focal loss."""

from torch import Tensor

from detector.kernels import focal_terms
from detector.losses.base import ClassificationLoss, one_over
from detector.registry import CLASSIFICATION_LOSSES, NonNegativeFloat, UnitFloat


@CLASSIFICATION_LOSSES.register("focal")
class FocalLoss(ClassificationLoss):
    """-alpha_t (1 - p_t)^gamma log(p_t) (Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5).

    An element right with p_t = 0.9 counts 100 times less at gamma = 2 than in cross entropy, so easy background stops
    drowning the foreground. alpha weighs target 1, 1 - alpha target 0; null weighs both 1. The published optimum is
    gamma = 2 with alpha = 0.25; gamma = 0 is cross entropy. The first loss to try."""

    def __init__(self, *, alpha: UnitFloat | None = 0.25, gamma: NonNegativeFloat = 2.0):
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    def split(
        self, logits: Tensor, labels: Tensor, num_fg: Tensor | float, level_sizes: tuple[int, ...] | None = None
    ) -> Tensor:
        return focal_terms(logits, labels, alpha=self.alpha, gamma=self.gamma, scale=one_over(num_fg, logits))
