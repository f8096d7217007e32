"""The assignment rule of YOLOX: each object takes its cheapest priors, a simplified optimal transport."""

import math

import torch.nn.functional as F
from torch import Tensor

from detector.core.structures import Priors
from detector.core.validation import NonNegativeFloat, PositiveFloat, PositiveInt
from detector.geometry.assignment.base import ASSIGNERS, is_central, is_inside
from detector.geometry.assignment.dynamic_k import DynamicKAssigner

PENALTY = 100_000


@ASSIGNERS.register("sim_ota")
class SimOTAAssigner(DynamicKAssigner):
    """YOLOX's rule SimOTA (Ge et al. 2021, section 2.1): the cheapest priors of an object.

    Source: "YOLOX: Exceeding YOLO Series in 2021". `DynamicKAssigner` describes how an object takes its cheapest
    priors. The cost of a prior with the class probabilities p for an object is

        sum over the classes of BCE(p, one-hot class of the object) + iou_weight * -ln(IoU)

    p is the score that ranks the detections. The candidates are the priors whose centers are inside the object, or less
    than `radius` strides from its center in x and in y. A candidate for which only one of the two is true is taken only
    after all candidates for which both are true: its cost is 100000 * (1 + cost). The authors' code adds 100000, which
    gives the same order.

    When to use: for a head with points or with one anchor for each cell, for small and crowded objects.

    Args:
        num_classes: K, the label of the background.
        radius: the size of the center region, in strides.
        candidates: the number of IoUs whose sum is the number of priors of an object.
        iou_weight: the factor of -ln(IoU) in the cost.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        radius: PositiveFloat = 2.5,
        candidates: PositiveInt = 10,
        iou_weight: NonNegativeFloat = 3.0,
    ):
        super().__init__(num_classes, candidates, iou_weight)
        self.radius = radius

    def cost_as_other(self, logits: Tensor) -> Tensor:
        """Return BCE(p, 0)."""
        return F.softplus(logits)

    def cost_as_object(self, logits: Tensor, iou: Tensor) -> Tensor:
        """Return BCE(p, 1). See `DynamicKAssigner`."""
        return F.softplus(-logits)

    def with_location(self, cost: Tensor, priors: Priors, boxes: Tensor) -> Tensor:
        """Return the cost with the penalty. See `DynamicKAssigner`."""
        inside, central = is_inside(priors.centers, boxes), is_central(priors, boxes, self.radius)
        penalized = (cost + 1).mul_(PENALTY).where(inside | central, math.inf)  # a sum with 100000 would round the cost
        return cost.where(inside & central, penalized)
