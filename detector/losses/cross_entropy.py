"""Binary cross entropy, plain, weighted, and with a margin."""

import torch
from torch import Tensor

from detector.core.validation import UnitFloat
from detector.kernels.reference import focal_elements
from detector.losses.base import CLASSIFICATION_LOSSES, ElementwiseLoss
from detector.losses.class_weights import Alpha, ClassCounts, ClassWeights
from detector.losses.focal import FocalLoss


@CLASSIFICATION_LOSSES.register("cross_entropy")
class CrossEntropyLoss(FocalLoss):
    """-alpha_t log(p_t) for each of the K sigmoid classifiers; alpha for target 1, 1 - alpha for target 0, both 1 where
    alpha is null; class_weights as in focal loss, of which this is gamma = 0. With `model.head.prior` it trains a dense
    detector; without, the background drowns it (Lin et al. 2017, section 3). Use it as the baseline."""

    def __init__(
        self,
        *,
        alpha: Alpha = None,
        class_weights: ClassWeights = None,
        class_counts: ClassCounts = None,
        beta: UnitFloat = 0.9999,
    ):
        super().__init__(alpha=alpha, gamma=0.0, class_weights=class_weights, class_counts=class_counts, beta=beta)


@CLASSIFICATION_LOSSES.register("margin_cross_entropy")
class MarginCrossEntropyLoss(ElementwiseLoss):
    """-alpha_t log(p_t) where p_t <= margin, else 0: an element stops counting once it is right by the margin, which is
    p > margin for target 1 and p < 1 - margin for target 0 (the hard truncation that focal loss makes smooth).

    margin = 1 is cross entropy. Use it to see what is gained by leaving easy elements out altogether: the decision
    stays sharp near the boundary, but nothing pulls a score beyond it, so scores are not calibrated."""

    def __init__(self, *, margin: UnitFloat = 0.6, alpha: UnitFloat | None = None):
        super().__init__()
        self.margin = margin
        self.alpha = alpha

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        right = torch.where(targets, logits, -logits).sigmoid() > self.margin
        return focal_elements(logits, targets, self.alpha, 0).masked_fill(right, 0)
