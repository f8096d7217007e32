"""L1 and its smooth and balanced forms on box offsets.

In all formulas, d = predicted - target is one of the four offsets of a box.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.core.validation import PositiveFloat
from detector.losses.base import BOX_LOSSES, BoxLoss


@BOX_LOSSES.register("l1")
class L1Loss(BoxLoss):
    """L1 loss: |d|.

    Shapes: offsets (..., 4), as in `BoxLoss.forward`.

    When to use: as the baseline of the box losses, and to reproduce torchvision's RetinaNet.
    """

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each offset, (..., 4). See `BoxLoss.elementwise`."""
        return (predicted - target).abs()


@BOX_LOSSES.register("smooth_l1")
class SmoothL1Loss(BoxLoss):
    """Smooth L1 loss: d^2 / (2 beta) where |d| < beta, else |d| - beta / 2.

    Source: Girshick 2015, "Fast R-CNN", equation 3, where beta is 1. The code of RetinaNet's authors has beta = 1/9.

    Shapes: offsets (..., 4), as in `BoxLoss.forward`.

    When to use: as the default loss on offsets. Outliers have a bounded gradient.

    Args:
        beta: the |d| at which the loss changes from quadratic to linear. A smaller beta gives small errors more weight,
            and is closer to L1.
    """

    def __init__(self, *, beta: PositiveFloat = 1 / 9):
        super().__init__()
        self.beta = beta

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each offset, (..., 4). See `BoxLoss.elementwise`."""
        return F.smooth_l1_loss(predicted, target, reduction="none", beta=self.beta)


@BOX_LOSSES.register("balanced_l1")
class BalancedL1Loss(BoxLoss):
    """Balanced L1 loss: a smooth L1 loss with a larger gradient for accurate boxes.

    Formula (Pang et al. 2019, "Libra R-CNN", equation 8):

        (alpha / b) (b |d| + 1) ln(b |d| + 1) - alpha |d|   where |d| < 1

        gamma |d| + gamma / b - alpha                       elsewhere

    Here b = exp(gamma / alpha) - 1. The gradient is alpha ln(b |d| + 1) where |d| < 1, and gamma elsewhere.

    Shapes: offsets (..., 4), as in `BoxLoss.forward`.

    When to use: where outliers dominate the gradient of the box loss.

    Args:
        alpha: the smaller it is, the larger is the gradient of the accurate boxes.
        gamma: the gradient of the outliers.
    """

    def __init__(self, *, alpha: PositiveFloat = 0.5, gamma: PositiveFloat = 1.5):
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each offset, (..., 4). See `BoxLoss.elementwise`."""
        b = math.expm1(self.gamma / self.alpha)
        d = (predicted - target).abs()
        near = d.clamp(max=1)
        inner = self.alpha * ((near + 1 / b) * torch.log1p(b * near) - near)
        return torch.where(d < 1, inner, self.gamma * (d + 1 / b) - self.alpha)
