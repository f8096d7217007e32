"""The assignment rule of TOOD: the priors of an object that both classify and locate it best."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.core.structures import GroundTruth, Predictions, Priors, Targets
from detector.core.validation import PositiveFloat, PositiveInt, Switch
from detector.geometry.assignment.base import (
    ASSIGNERS,
    Assigner,
    BestMatch,
    best_targets,
    class_logits,
    first_of_lowest,
    is_inside,
    matched_iou,
    only_background,
    parts_of,
)
from detector.geometry.boxes import pairwise_iou

ONE_TO_ONE_TOPK = 7


@ASSIGNERS.register("task_aligned")
class TaskAlignedAssigner(Assigner):
    """TOOD's rule (Feng et al. 2021, section 3.2): the priors of an object that classify and locate it best.

    Source: "TOOD: Task-aligned One-stage Object Detection". The alignment of a prior with an object is

        t = s^alpha * u^beta

    s is the predicted score of the class of the object, and u is the IoU of the predicted box and the object. The
    candidates of an object are the priors whose centers are inside it. Its `topk` candidates with the highest t are
    foreground. Of equal t, the first priors win. A candidate with u = 0 has t = 0 and is not foreground.

    A prior that is foreground for several objects takes the object with the highest IoU. Of equal IoUs, the first
    object wins. All other priors are background. They are ignored if more than half of their area is inside an ignore
    region.

    The quality of a foreground prior is t / max(t) * max(u), with the maxima over the foreground priors of its object.

    `one_to_one()` is the rule for a one-to-one head. It first matches as above with a `topk` of 7. Then each object
    keeps only its prior with the highest t. Of equal t, the first prior wins. With a low `topk`, an object can lose all
    its priors to other objects. YOLOv10 (Wang et al. 2024) uses this t for both rules, with a `topk` of 1. Ultralytics'
    YOLO26 uses 7.

    The authors' code takes the `topk` priors first and then removes those with centers outside the object. The
    authors' training uses ATSS in its first 4 epochs. YOLOv8 uses alpha 0.5, beta 6 and topk 10, and takes the
    candidates first.

    When to use: for a head whose scores predict the quality of the boxes, with `loss.classification=quality_focal` or
    `varifocal`.

    Args:
        num_classes: K, the label of the background.
        topk: the number of candidates of an object that are foreground.
        alpha: the exponent of the score.
        beta: the exponent of the IoU.
        enlarge_small: a side of an object that is shorter than the finest stride counts as two of these strides in the
            test of the center. Without this, an object that contains no center gets no prior.
    """

    needs_predictions = True
    gives_quality = True

    def __init__(
        self,
        num_classes: int,
        *,
        topk: PositiveInt = 13,
        alpha: PositiveFloat = 1.0,
        beta: PositiveFloat = 6.0,
        enlarge_small: Switch = False,
    ):
        super().__init__(num_classes)
        self.topk = topk
        self.alpha = alpha
        self.beta = beta
        self.enlarge_small = enlarge_small
        self.is_one_to_one = False

    def one_to_one(self) -> "TaskAlignedAssigner":
        """Return the rule that gives each object only its prior with the highest alignment."""
        rule = copy.copy(self)
        rule.topk, rule.is_one_to_one = ONE_TO_ONE_TOPK, True
        return rule

    @torch.no_grad()
    def __call__(self, priors: Priors, truth: GroundTruth, predictions: Predictions | None = None) -> Targets:
        """Return the targets of a batch. See `Assigner`."""
        assert predictions is not None
        if not len(priors) or not truth.labels.numel():
            return only_background(priors, len(truth.boxes), self.num_classes, has_quality=True)
        best = BestMatch(len(truth.boxes), len(priors), truth.boxes)
        for part in parts_of(truth.boxes, len(priors)):
            boxes = truth.boxes[:, part]
            iou = pairwise_iou(boxes, predictions.boxes)
            cost = self._misalignment(class_logits(predictions, truth.labels[:, part]), iou)
            around = _enlarged(boxes, priors.level_strides[0]) if self.enlarge_small else boxes
            is_candidate = is_inside(priors.centers, around) & truth.is_object[:, part, None] & (cost < math.inf)
            lowest, index = first_of_lowest(cost.where(is_candidate, math.inf), self.topk)
            best.update_at(index, iou.gather(2, index).where(lowest < math.inf, -math.inf), part.start)
        cost, iou = self._of_matches(best, truth, predictions)
        if self.is_one_to_one:
            best.keep_lowest(cost, truth.labels.shape[1])
        quality = _quality(best, cost, iou, truth.labels.shape[1])
        return best_targets(best, priors.boxes, truth, self.num_classes, quality)

    def _misalignment(self, logits: Tensor, iou: Tensor) -> Tensor:
        """Return -ln(t), which cannot underflow. It is inf where the IoU is 0."""
        return self.alpha * F.softplus(-logits) - self.beta * iou.clamp(max=1).log()

    def _of_matches(self, best: BestMatch, truth: GroundTruth, predictions: Predictions) -> tuple[Tensor, Tensor]:
        """Return -ln(t) and u of each prior and its object, (B, A) both. Only matched priors have valid values."""
        iou = matched_iou(truth, best.match, predictions)
        labels = truth.labels.gather(1, best.match).clamp(min=0)
        logits = predictions.ranking_logits.gather(2, labels[..., None])[..., 0].float()
        return self._misalignment(logits, iou), iou


def _quality(best: BestMatch, cost: Tensor, iou: Tensor, num_boxes: int) -> Tensor:
    """Return t / max(t) * max(u) of each prior and its object, (B, A). Only matched priors have valid values."""
    lowest = best.lowest(cost, num_boxes)
    highest = torch.zeros_like(lowest).scatter_reduce(1, best.match, iou.where(best.is_matched, 0), "amax")
    return (lowest.gather(1, best.match) - cost).exp() * highest.gather(1, best.match)


def _enlarged(boxes: Tensor, stride: int) -> Tensor:
    """Return the boxes (..., 4) with sides of two strides around their centers in place of sides below a stride."""
    centers, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    is_small = sides < stride
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((centers - stride).where(is_small, low), (centers + stride).where(is_small, high)), dim=-1)
