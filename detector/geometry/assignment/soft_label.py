"""The assignment rule of RTMDet: each object takes its cheapest priors, with the IoU as the label of its class."""

import math

import torch.nn.functional as F
from torch import Tensor

from detector.core.structures import Priors
from detector.core.validation import FiniteFloat, NonNegativeFloat, PositiveInt
from detector.geometry.assignment.base import ASSIGNERS, is_inside
from detector.geometry.assignment.dynamic_k import DynamicKAssigner


@ASSIGNERS.register("soft_label")
class SoftLabelAssigner(DynamicKAssigner):
    """RTMDet's rule (Lyu et al. 2022, section 3.3): the cheapest priors of an object, with soft labels in the cost.

    Source: "RTMDet: An Empirical Study of Designing Real-Time Object Detectors". `DynamicKAssigner` describes how an
    object takes its cheapest priors. The cost of a prior with the class probabilities p for an object is

        sum over the classes of BCE(p, y) * (y - p)^2 + iou_weight * -ln(IoU) + 10^(d - radius)

    The label y is the IoU for the class of the object, and 0 for the other classes. d is the distance of the center of
    the prior from the center of the object, in strides. p is the score that ranks the detections. The candidates are
    the priors whose centers are inside the object. A candidate with a cost above the range of fp32 is not taken.

    When to use: for a head with points, with `loss.classification=quality_focal`.

    Args:
        num_classes: K, the label of the background.
        radius: the distance in strides from which the cost of the location is above 1.
        candidates: the number of IoUs whose sum is the number of priors of an object.
        iou_weight: the factor of -ln(IoU) in the cost.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        radius: FiniteFloat = 3.0,
        candidates: PositiveInt = 13,
        iou_weight: NonNegativeFloat = 3.0,
    ):
        super().__init__(num_classes, candidates, iou_weight)
        self.radius = radius

    def cost_as_other(self, logits: Tensor) -> Tensor:
        """Return BCE(p, 0) p^2."""
        return F.softplus(logits) * logits.sigmoid().square_()

    def cost_as_object(self, logits: Tensor, iou: Tensor) -> Tensor:
        """Return BCE(p, IoU) (IoU - p)^2. See `DynamicKAssigner`."""
        return (F.softplus(logits) - logits * iou) * (iou - logits.sigmoid()).square_()

    def with_location(self, cost: Tensor, priors: Priors, boxes: Tensor) -> Tensor:
        """Return the cost with the cost of the distance. See `DynamicKAssigner`."""
        x, y = priors.centers.T.contiguous()
        left, top, right, bottom = boxes[..., None].unbind(dim=2)
        distance = (x - (left + right) / 2).square_().add_((y - (top + bottom) / 2).square_()).sqrt_()
        cost = cost + 10 ** (distance / priors.strides() - self.radius)
        return cost.where(is_inside(priors.centers, boxes), math.inf)
