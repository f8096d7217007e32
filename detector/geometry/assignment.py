"""Rules that give each anchor its class and its ground truth, for the whole batch at once."""

import torch
from torch import Tensor

from detector.geometry.boxes import box_area, overlap, pairwise_intersection
from detector.registry import ASSIGNERS, UnitFloat
from detector.structures import IGNORED, Targets


@ASSIGNERS.register("max_iou")
class MaxIoUAssigner:
    """RetinaNet's rule (Lin et al. 2017, section 4): each anchor takes the ground truth it overlaps most.

    Foreground from IoU `foreground` on, background below `background`, ignored in between. With `low_quality`, the
    anchors that overlap a ground truth most (ties included) are foreground however low that is, and keep the ground
    truth that *they* overlap most. A background anchor more than half inside an ignore region is ignored.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        foreground: UnitFloat = 0.5,
        background: UnitFloat = 0.4,
        low_quality: bool = True,
    ):
        self.num_classes = num_classes
        self.foreground = foreground
        self.background = background
        self.low_quality = low_quality

    @torch.no_grad()
    def __call__(self, anchors: Tensor, boxes: Tensor, labels: Tensor, ignore: Tensor) -> Targets:
        """anchors (A, 4), boxes (B, G, 4), labels (B, G) with -1 where padded, ignore (B, G) -> Targets; G >= 1."""
        counts = (labels >= 0) & ~ignore
        anchor_areas = box_area(anchors)
        intersection = pairwise_intersection(boxes, anchors)  # B G A: reductions over rows
        iou = overlap(intersection, box_area(boxes)[..., None], anchor_areas).masked_fill_(~counts[..., None], -1)
        best_iou, match = iou.max(dim=1)
        is_foreground = best_iou >= self.foreground
        if self.low_quality:
            best_anchor_iou = iou.amax(dim=2, keepdim=True)
            is_foreground |= ((iou == best_anchor_iou) & (best_anchor_iou > 0)).any(dim=1)
        anchor_labels = labels.gather(1, match)
        anchor_labels = torch.where(best_iou < self.background, self.num_classes, IGNORED).where(
            ~is_foreground, anchor_labels
        )
        inside = intersection.masked_fill_(~ignore[..., None], 0).amax(dim=1)
        in_ignored_region = (inside > 0.5 * anchor_areas) & ~is_foreground
        anchor_labels = anchor_labels.masked_fill(in_ignored_region, IGNORED)
        return Targets(anchor_labels, boxes.gather(1, match[..., None].expand(-1, -1, 4)))
