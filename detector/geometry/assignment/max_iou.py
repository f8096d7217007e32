"""The assignment rule of RetinaNet: each anchor takes the ground truth with the highest IoU."""

import torch

from detector.core.structures import IGNORED, GroundTruth, Predictions, Priors, Targets
from detector.core.validation import UnitFloat
from detector.geometry.assignment.base import (
    ASSIGNERS,
    Assigner,
    BestMatch,
    ignore_inside_regions,
    largest_inside,
    matched_targets,
    only_background,
    parts_of,
)
from detector.geometry.boxes import box_area, overlap, pairwise_intersection


@ASSIGNERS.register("max_iou")
class MaxIoUAssigner(Assigner):
    """RetinaNet's rule (Lin et al. 2017, section 4): each anchor takes the ground truth with the highest IoU.

    An anchor is foreground if this IoU is at least `foreground`, and background if it is below `background`. Between
    the two it is ignored. A background anchor is also ignored if more than half of its area is inside an ignore region.

    Args:
        num_classes: K, the label of the background.
        foreground: the lowest IoU of a foreground anchor.
        background: the IoU below which an anchor is background.
        low_quality: the anchors with the highest IoU of a ground truth are foreground, also if this IoU is low. All
            anchors with the same highest IoU are. They still take the ground truth that is the best for the anchor. The
            paper has no such rule. torchvision and detectron2 have this rule.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        foreground: UnitFloat = 0.5,
        background: UnitFloat = 0.4,
        low_quality: bool = True,
    ):
        super().__init__(num_classes)
        self.foreground = foreground
        self.background = background
        self.low_quality = low_quality
        self.is_local = background > 0

    @torch.no_grad()
    def __call__(self, priors: Priors, truth: GroundTruth, predictions: Predictions | None = None) -> Targets:
        """Return the targets of a batch. See `Assigner`."""
        anchors, boxes, labels, ignore = priors.boxes, truth.boxes, truth.labels, truth.ignore
        if not len(anchors) or not boxes.numel():
            return only_background(priors, len(boxes), self.num_classes)
        anchor_areas, areas = box_area(anchors), box_area(boxes)[..., None]
        best = BestMatch(len(boxes), len(anchors), boxes)
        is_best, inside = torch.zeros_like(best.match, dtype=torch.bool), torch.zeros_like(best.value)
        for part in parts_of(boxes, len(anchors)):
            intersection = pairwise_intersection(boxes[:, part], anchors)  # (B, G, A), so that reductions run over rows
            iou = overlap(intersection, areas[:, part], anchor_areas).masked_fill_(~truth.is_object[:, part, None], -1)
            best.update(iou, part.start)
            if self.low_quality:
                best_anchor_iou = iou.amax(dim=2, keepdim=True)
                is_best |= ((iou == best_anchor_iou) & (best_anchor_iou > 0)).any(dim=1)
            inside = inside.maximum(largest_inside(intersection, ignore[:, part]))
        is_foreground = (best.value >= self.foreground) | is_best
        anchor_labels = torch.where(best.value < self.background, self.num_classes, IGNORED).where(
            ~is_foreground, labels.gather(1, best.match)
        )
        anchor_labels = ignore_inside_regions(anchor_labels, self.num_classes, inside, anchor_areas)
        return matched_targets(truth, anchor_labels, best.match)
