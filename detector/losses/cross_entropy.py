"""Binary cross entropy: plain, weighted, and with a margin."""

import torch
from torch import Tensor

from detector.core.validation import UnitFloat
from detector.kernels.reference import focal_elements
from detector.losses.base import CLASSIFICATION_LOSSES, ElementwiseLoss
from detector.losses.class_weights import Alpha, ClassCounts, ClassWeights
from detector.losses.focal import FocalLoss


@CLASSIFICATION_LOSSES.register("cross_entropy")
class CrossEntropyLoss(FocalLoss):
    """Binary cross entropy of each of the K sigmoid classifiers: the baseline.

    Formula of an element: -alpha_t log(p_t), where p_t is p for target 1 and 1 - p for target 0 (Lin et al. 2017,
    "Focal Loss for Dense Object Detection", equation 3). This is focal loss with gamma = 0.

    Shapes: logits (..., K) and labels (...), as in `ClassificationLoss.forward`.

    When to use: as the baseline of every comparison. Set `model.head.prior`. Without a prior, the loss of the
    background dominates the first steps (Lin et al. 2017, section 3.3).

    Args:
        alpha: the weight of target 1. Target 0 gets 1 - alpha. A list has one alpha for each class. With null, both
            weights are 1.
        class_weights: the weights of the classes, or the rule that computes them, as in `FocalLoss`.
        class_counts: the number of objects of each class. A config takes it from the training set.
        beta: the beta of the rule `effective_number`.
    """

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
    """Cross entropy that ignores each element that is right by a margin.

    Formula of an element: -alpha_t log(p_t) where p_t <= margin, else 0. p_t is p for target 1 and 1 - p for target 0.
    This is a hard truncation. Focal loss is its smooth form.

    Shapes: logits (..., K) and labels (...), as in `ClassificationLoss.forward`.

    When to use: to measure the effect of the easy elements. The decision stays sharp near the boundary. No gradient
    moves a score beyond the margin, so the scores are not calibrated.

    Args:
        margin: the largest p_t that counts. 1 gives cross entropy.
        alpha: the weight of target 1. Target 0 gets 1 - alpha. With null, both weights are 1.
    """

    def __init__(self, *, margin: UnitFloat = 0.6, alpha: UnitFloat | None = None):
        super().__init__()
        self.margin = margin
        self.alpha = alpha

    def elementwise(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each element. See `ElementwiseLoss.elementwise`."""
        is_easy = torch.where(targets, logits, -logits).sigmoid() > self.margin
        return focal_elements(logits, targets, self.alpha, 0).masked_fill(is_easy, 0)
