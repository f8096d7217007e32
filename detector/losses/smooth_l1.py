"""L1 and its smooth form on box offsets."""

import torch.nn.functional as F
from torch import Tensor

from detector.losses.base import BoxLoss
from detector.registry import BOX_LOSSES, PositiveFloat


@BOX_LOSSES.register("l1")
class L1Loss(BoxLoss):
    """|d| for each of the four offsets d = predicted - target."""

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        return (predicted - target).abs()


@BOX_LOSSES.register("smooth_l1")
class SmoothL1Loss(BoxLoss):
    """d^2 / (2 beta) where |d| < beta, else |d| - beta / 2 (Girshick 2015; beta = 1/9 in RetinaNet's own code).
    A smaller beta counts small errors more and comes closer to L1."""

    def __init__(self, *, beta: PositiveFloat = 1 / 9):
        super().__init__()
        self.beta = beta

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(predicted, target, reduction="none", beta=self.beta)
