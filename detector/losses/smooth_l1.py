"""L1 and its smooth and balanced forms on box offsets."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.core.validation import PositiveFloat
from detector.losses.base import BOX_LOSSES, BoxLoss


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


@BOX_LOSSES.register("balanced_l1")
class BalancedL1Loss(BoxLoss):
    """alpha / b (b |d| + 1) ln(b |d| + 1) - alpha |d| where |d| < 1, else gamma |d| + gamma / b - alpha, with
    b = exp(gamma / alpha) - 1 (Pang et al. 2019, "Libra R-CNN", equation 8).

    The gradient alpha ln(b |d| + 1) of the accurate boxes is raised against that of the outliers, which is gamma."""

    def __init__(self, *, alpha: PositiveFloat = 0.5, gamma: PositiveFloat = 1.5):
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        b = math.expm1(self.gamma / self.alpha)
        d = (predicted - target).abs()
        near = d.clamp(max=1)
        inner = self.alpha * ((near + 1 / b) * torch.log1p(b * near) - near)
        return torch.where(d < 1, inner, self.gamma * (d + 1 / b) - self.alpha)
