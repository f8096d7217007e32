"""Adaptive training sample selection (ATSS): a separate IoU threshold for each ground truth."""

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
    """Adaptive training sample selection (Zhang et al. 2020, section 4, algorithm 1).

    Source: "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection".

    The candidates of a ground truth are the `candidates` anchors of each level whose centers are nearest to its center.
    Of equal distances, the first anchors win. A level with fewer anchors gives all of them. A candidate is foreground
    if both conditions are true:

    - Its IoU is at least the mean plus the unbiased standard deviation of the IoUs of all candidates.
    - Its center is inside the ground truth, more than 0.01 pixels from its sides.

    An anchor that is foreground for several ground truths takes the ground truth with the highest IoU. Of equal IoUs,
    the first wins. All other anchors are background. They are ignored if more than half of their area is inside an
    ignore region. A ground truth that contains no anchor center gets no anchor.

    The n anchors of a cell have the same center. The authors' code therefore takes 9n candidates.

    Args:
        num_classes: K, the label of the background.
        candidates: the number of candidates on each level.
    """

    is_local = False  # a candidate affects the threshold also where it does not overlap the ground truth

    def __init__(self, num_classes: int, *, candidates: PositiveInt = 9):
        super().__init__(num_classes)
        self.candidates = candidates

    @torch.no_grad()
    def __call__(self, priors: Priors, truth: GroundTruth, predictions: Predictions | None = None) -> Targets:
        """Return the targets of a batch. See `Assigner`."""
        anchors, boxes, labels, ignore = priors.boxes, truth.boxes, truth.labels, truth.ignore
        if not len(anchors) or not boxes.numel():
            return only_background(priors, len(boxes), self.num_classes)
        near = torch.cat(  # B G C
            [self._nearest(anchors, boxes[:, part], priors.level_sizes) for part in parts_of(boxes, len(anchors))],
            dim=1,
        )
        candidates = anchors[near]
        iou = pairwise_iou(boxes[:, :, None], candidates).squeeze(2)
        # in fp64 the mean of equal IoUs is exact, so all of them reach the threshold
        std, mean = torch.std_mean(iou.double(), dim=2, correction=min(1, near.shape[2] - 1), keepdim=True)
        centers = _centers(candidates)
        to_sides = torch.cat((centers - boxes[:, :, None, :2], boxes[:, :, None, 2:] - centers), dim=-1).amin(dim=-1)
        is_object = (labels >= 0) & ~ignore
        is_claimed = (iou >= mean + std) & (to_sides > 0.01) & is_object[..., None]

        claimed_iou = iou.masked_fill(~is_claimed, -1)
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
        """Return the indices of the candidates of each ground truth, (B, G, C), level by level."""
        x, y = _centers(boxes)[..., None].unbind(dim=2)
        nearest, start = [], 0
        for centers in _centers(anchors).split(level_sizes):
            distance = (x - centers[:, 0]).square_().add_((y - centers[:, 1]).square_())
            # the bits of non-negative floats have the order of the floats; the index in the lower half breaks ties
            index = torch.arange(start, start + len(centers), device=anchors.device)
            key = distance.view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(index)
            smallest = key.topk(min(self.candidates, len(centers)), largest=False, sorted=False).values
            nearest.append(smallest.bitwise_and_(0xFFFFFFFF))
            start += len(centers)
        return torch.cat(nearest, dim=2)


def _centers(boxes: Tensor) -> Tensor:
    """Return the centers (..., 2) of boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2
