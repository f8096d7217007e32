"""Adaptive training sample selection (ATSS): a separate IoU threshold for each ground truth."""

import math

import torch
from torch import Tensor

from detector.core.structures import GroundTruth, Predictions, Priors, Targets
from detector.core.validation import PositiveFloat, PositiveInt
from detector.geometry.assignment.base import (
    ASSIGNERS,
    Assigner,
    BestMatch,
    best_targets,
    first_of_lowest,
    only_background,
    parts_of,
)
from detector.geometry.boxes import pairwise_iou


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

    A point is a prior with a side of one stride. For points, the authors' code uses squares with a side of 8 strides:
    set `anchor_scale` to 8.

    Args:
        num_classes: K, the label of the background.
        candidates: the number of candidates on each level.
        anchor_scale: a factor of the sides of the priors, 8 for points. The rule uses the enlarged priors as anchors.
    """

    is_local = False  # a candidate affects the threshold also where it does not overlap the ground truth

    def __init__(self, num_classes: int, *, candidates: PositiveInt = 9, anchor_scale: PositiveFloat = 1.0):
        super().__init__(num_classes)
        self.candidates = candidates
        self.anchor_scale = anchor_scale

    @torch.no_grad()
    def __call__(self, priors: Priors, truth: GroundTruth, predictions: Predictions | None = None) -> Targets:
        """Return the targets of a batch. See `Assigner`."""
        boxes = truth.boxes
        if not len(priors) or not boxes.numel():
            return only_background(priors, len(boxes), self.num_classes)
        anchors = _scaled(priors, self.anchor_scale)
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
        is_claimed = (iou >= mean + std) & (to_sides > 0.01) & truth.is_object[..., None]

        claimed_iou = iou.where(is_claimed, -math.inf)
        best = BestMatch(len(boxes), len(anchors), iou)
        for part in parts_of(boxes, len(anchors)):
            best.update_at(near[:, part], claimed_iou[:, part], part.start)
        return best_targets(best, anchors, truth, self.num_classes)

    def _nearest(self, anchors: Tensor, boxes: Tensor, level_sizes: tuple[int, ...]) -> Tensor:
        """Return the indices of the candidates of each ground truth, (B, G, C), level by level."""
        x, y = _centers(boxes)[..., None].unbind(dim=2)
        nearest, start = [], 0
        for centers in _centers(anchors).split(level_sizes):
            distance = (x - centers[:, 0]).square_().add_((y - centers[:, 1]).square_())
            nearest.append(first_of_lowest(distance, self.candidates)[1] + start)
            start += len(centers)
        return torch.cat(nearest, dim=2)


def _centers(boxes: Tensor) -> Tensor:
    """Return the centers (..., 2) of boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _scaled(priors: Priors, factor: float) -> Tensor:
    """Return the boxes (A, 4) of the priors with their sides multiplied by a factor. The centers stay."""
    if factor == 1:  # the same bits
        return priors.boxes
    half_sides = (priors.boxes[:, 2:] - priors.boxes[:, :2]) * (factor / 2)
    return torch.cat((priors.centers - half_sides, priors.centers + half_sides), dim=1)
