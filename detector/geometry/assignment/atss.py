"""Adaptive training sample selection (ATSS): each ground truth sets its own IoU threshold."""

import torch
from torch import Tensor

from detector.core.structures import GroundTruth, Predictions, Priors, Targets
from detector.core.validation import PositiveInt
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
from detector.geometry.boxes import box_area, pairwise_intersection, pairwise_iou


@ASSIGNERS.register("atss")
class ATSSAssigner(Assigner):
    """Adaptive training sample selection (Zhang et al. 2020, section 4): each ground truth sets its own threshold.

    Its candidates are, on each level, the `candidates` anchors whose centres are nearest to its own (all where the
    level has fewer; of equally near ones the first). Foreground are the candidates with an IoU of at least the mean
    plus the standard deviation (unbiased) of all its candidates' IoUs, and with a centre inside it, over 0.01 pixels
    from its sides. An anchor that several ground truths claim takes the one it overlaps most, the first of equals; all
    others are background, and ignored where more than half inside an ignore region. A ground truth too small to hold
    any anchor's centre gets none.

    Anchors of one cell share a centre: for n of them, the authors' code takes 9n candidates.
    """

    is_local = False  # a candidate counts even where it touches no box

    def __init__(self, num_classes: int, *, candidates: PositiveInt = 9):
        super().__init__(num_classes)
        self.candidates = candidates

    @torch.no_grad()
    def __call__(self, priors: Priors, truth: GroundTruth, predictions: Predictions | None = None) -> Targets:
        anchors, boxes, labels, ignore = priors.boxes, truth.boxes, truth.labels, truth.ignore
        if not len(anchors) or not boxes.numel():
            return only_background(priors, len(boxes), self.num_classes)
        near = torch.cat(  # B G C
            [self._nearest(anchors, boxes[:, part], priors.level_sizes) for part in parts_of(boxes, len(anchors))],
            dim=1,
        )
        candidates = anchors[near]
        iou = pairwise_iou(boxes[:, :, None], candidates).squeeze(2)
        # In float64 the mean of equal IoUs is exact, so that all of them reach it.
        std, mean = torch.std_mean(iou.double(), dim=2, correction=min(1, near.shape[2] - 1), keepdim=True)
        centres = _centres(candidates)
        to_sides = torch.cat((centres - boxes[:, :, None, :2], boxes[:, :, None, 2:] - centres), dim=-1).amin(dim=-1)
        counts = (labels >= 0) & ~ignore
        claims = (iou >= mean + std) & (to_sides > 0.01) & counts[..., None]

        claimed_iou = iou.masked_fill(~claims, -1)
        best, inside = BestMatch(len(boxes), len(anchors), iou), iou.new_zeros(len(boxes), len(anchors))
        for part in parts_of(boxes, len(anchors)):
            dense = iou.new_full((*labels[:, part].shape, len(anchors)), -1)
            best.update(dense.scatter_(2, near[:, part], claimed_iou[:, part]), part.start)
            intersection = pairwise_intersection(boxes[:, part], anchors)
            inside = inside.maximum(largest_inside(intersection, ignore[:, part]))
        anchor_labels = labels.gather(1, best.match).masked_fill(best.value < 0, self.num_classes)
        anchor_labels = ignore_inside_regions(anchor_labels, self.num_classes, inside, box_area(anchors))
        return matched_targets(truth, anchor_labels, best.match)

    def _nearest(self, anchors: Tensor, boxes: Tensor, level_sizes: tuple[int, ...]) -> Tensor:
        """(B, G, C) indices of each ground truth's candidates, level by level."""
        x, y = _centres(boxes)[..., None].unbind(dim=2)
        found, start = [], 0
        for centres in _centres(anchors).split(level_sizes):
            distance = (x - centres[:, 0]).square_().add_((y - centres[:, 1]).square_())
            # Floats from 0 on are in the order of their bits; the index in the lower half decides between equals.
            index = torch.arange(start, start + len(centres), device=anchors.device)
            key = distance.view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(index)
            nearest = key.topk(min(self.candidates, len(centres)), largest=False, sorted=False).values
            found.append(nearest.bitwise_and_(0xFFFFFFFF))
            start += len(centres)
        return torch.cat(found, dim=2)


def _centres(boxes: Tensor) -> Tensor:
    """(..., 4) -> (..., 2)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2
