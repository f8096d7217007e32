"""The base class of rules in which each object takes its k cheapest candidates, with a separate k for each object."""

import math

import torch
from torch import Tensor

from detector.core.structures import GroundTruth, Predictions, Priors, Targets
from detector.geometry.assignment.base import (
    Assigner,
    BestMatch,
    best_targets,
    class_logits,
    first_of_lowest,
    matched_iou,
    only_background,
    parts_of,
)
from detector.geometry.boxes import pairwise_iou

LEAST_IOU = 1e-7  # so that -ln(IoU) is finite


class DynamicKAssigner(Assigner):
    """A rule that compares the cost of each pair of object and prior. A subclass defines the cost.

    The cost is the sum of a class cost over all K classes, `iou_weight` * -ln(IoU), and the cost of the location. The
    IoU is that of the predicted box and the object. A location with an infinite cost is not a candidate.

    An object takes its k candidates with the lowest costs. Of equal costs, the first priors win. k is the sum of the
    highest IoUs of `candidates` candidates, rounded down, and at least 1. A prior that several objects take goes to the
    object with the lowest cost. Of equal costs, the first object wins. All other priors are background. They are
    ignored if more than half of their area is inside an ignore region.

    The quality of a foreground prior is its IoU.

    The code of YOLOX and of RTMDet differs in two cases. There, an object can also take the candidates of other objects
    of its image. A prior that several objects take goes to the cheapest of all objects, also if that object did not
    take it.
    """

    needs_predictions = True
    gives_quality = True

    def __init__(self, num_classes: int, candidates: int, iou_weight: float):
        """Build the rule.

        Args:
            num_classes: K, the label of the background.
            candidates: the number of IoUs whose sum is k.
            iou_weight: the factor of -ln(IoU).
        """
        super().__init__(num_classes)
        self.candidates = candidates
        self.iou_weight = iou_weight

    def cost_as_other(self, logits: Tensor) -> Tensor:
        """Return the class cost of logits of classes that are not the class of the object."""
        raise NotImplementedError

    def cost_as_object(self, logits: Tensor, iou: Tensor) -> Tensor:
        """Return the class cost of logits of the class of the object.

        Args:
            logits: (B, G, A), the logit of each prior for the class of each object.
            iou: (B, G, A), the IoU of each predicted box and each object.
        """
        raise NotImplementedError

    def with_location(self, cost: Tensor, priors: Priors, boxes: Tensor) -> Tensor:
        """Return the cost that includes the cost of the location. It is inf where a prior is not a candidate.

        Args:
            cost: (B, G, A), the cost of the class and of the box, at least 0.
            priors: the A priors.
            boxes: (B, G, 4), the objects.
        """
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, priors: Priors, truth: GroundTruth, predictions: Predictions | None = None) -> Targets:
        """Return the targets of a batch. See `Assigner`."""
        assert predictions is not None
        if not len(priors) or not truth.labels.numel():
            return only_background(priors, len(truth.boxes), self.num_classes, has_quality=True)
        # the sum over the classes is the same for all objects, so no tensor has objects, priors and classes
        as_others = self.cost_as_other(predictions.ranking_logits.float()).sum(dim=2)[:, None]
        best = BestMatch(len(truth.boxes), len(priors), truth.boxes)
        for part in parts_of(truth.boxes, len(priors)):
            boxes = truth.boxes[:, part]
            iou = pairwise_iou(boxes, predictions.boxes).clamp_(max=1)
            logits = class_logits(predictions, truth.labels[:, part])
            cost = (as_others - self.cost_as_other(logits)).clamp_(min=0).add_(self.cost_as_object(logits, iou))
            cost.sub_(iou.clamp(min=LEAST_IOU).log_(), alpha=self.iou_weight)
            cost = self.with_location(cost, priors, boxes)
            is_candidate = (cost < math.inf) & truth.is_object[:, part, None]
            lowest, index = first_of_lowest(cost.where(is_candidate, math.inf), self.candidates)
            k = iou.where(is_candidate, 0).topk(index.shape[2], sorted=False).values.sum(dim=2, dtype=torch.float64)
            rank = torch.arange(index.shape[2], device=index.device)
            is_taken = (rank < k.floor().clamp(min=1)[..., None]) & (lowest < math.inf)
            best.update_at(index, (-lowest).where(is_taken, -math.inf), part.start)
        quality = matched_iou(truth, best.match, predictions)
        return best_targets(best, priors.boxes, truth, self.num_classes, quality)
