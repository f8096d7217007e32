"""Losses on the distributions of the distances from a point to the sides of its box."""

from torch import Tensor

from detector.losses.base import BOX_LOSSES, BoxLoss


@BOX_LOSSES.register("dfl")
class DistributionFocalLoss(BoxLoss):
    """Distribution focal loss: the mean over the four sides of -((i + 1 - d) log p_i + (d - i) log p_(i+1)).

    d is the true distance in strides, and i is d rounded down. p is the softmax of the logits of a side. The target
    probabilities i + 1 - d and d - i are those of `DistributionCoder.encode`. Source: Li et al. 2020, "Generalized
    Focal Loss", equation 6.

    Shapes: logits and target probabilities (..., 4 * (reg_max + 1)), as in `BoxLoss.forward`.

    When to use: with the head `points` and `reg_max`, in addition to an overlap loss. The published weight is 0.25,
    with a weight of 2 for `giou`.
    """

    on_distributions = True

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each box, (...). See `BoxLoss.elementwise`."""
        log_probabilities = predicted.unflatten(-1, (4, -1)).log_softmax(dim=-1)
        return -(target.unflatten(-1, (4, -1)) * log_probabilities).sum(dim=(-2, -1)) / 4
