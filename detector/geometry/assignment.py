"""Rules that give each anchor its class and its ground truth, for the whole batch at once."""

import torch
from torch import Tensor

from detector.core.registry import ASSIGNERS, PositiveInt, UnitFloat
from detector.core.structures import IGNORED, Targets
from detector.geometry.boxes import box_area, overlap, pairwise_intersection, pairwise_iou

MAX_PAIRS = 2**25  # of an image's ground truth and an anchor at a time: 128 MB for each of their few tensors


def parts_of(boxes: Tensor, num_anchors: int) -> list[slice]:
    """Ground truths (B, G, 4) in parts that meet all anchors at once without filling the memory; mostly one."""
    num_images, num_boxes = boxes.shape[:2]
    size = max(1, MAX_PAIRS // max(1, num_images * num_anchors))
    return [slice(start, start + size) for start in range(0, num_boxes, size)]


def only_background(anchors: Tensor, num_images: int, num_classes: int) -> Targets:
    """What every rule says without a ground truth or without an anchor."""
    labels = torch.full((num_images, len(anchors)), num_classes, device=anchors.device)
    return Targets(labels, anchors.expand(num_images, -1, -1))


class Best:
    """For each anchor (B, A) the highest of the values seen and the ground truth it comes from, the first of equals."""

    def __init__(self, num_images: int, num_anchors: int, like: Tensor):
        self.value = like.new_full((num_images, num_anchors), -1)
        self.match = torch.zeros(num_images, num_anchors, dtype=torch.int64, device=like.device)

    def update(self, values: Tensor, start: int) -> None:
        """values (B, G', A) of the ground truths from `start` on."""
        value, match = values.max(dim=1)
        better = value > self.value
        self.value = value.where(better, self.value)
        self.match = (match + start).where(better, self.match)


def ignore_inside_regions(labels: Tensor, background: int, inside: Tensor, anchor_areas: Tensor) -> Tensor:
    """Labels (B, A) with background anchors more than half inside an ignore region turned to ignored; inside (B, A),
    the largest area that an anchor shares with one."""
    return labels.masked_fill((labels == background) & (inside > 0.5 * anchor_areas), IGNORED)


def largest_inside(intersection: Tensor, ignore: Tensor) -> Tensor:
    """(B, A) from the areas that ground truths and anchors share (B, G, A), which are overwritten; ignore (B, G)."""
    return intersection.masked_fill_(~ignore[..., None], 0).amax(dim=1)


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
        self.local = background > 0  # an anchor that touches no box is background, and means nothing to the others

    @torch.no_grad()
    def __call__(
        self, anchors: Tensor, boxes: Tensor, labels: Tensor, ignore: Tensor, level_sizes: tuple[int, ...]
    ) -> Targets:
        """anchors (A, 4), boxes (B, G, 4), labels (B, G) with -1 where padded, ignore (B, G) -> Targets. A, B and G may
        be 0. level_sizes, the anchors of each pyramid level, is for other rules."""
        if not len(anchors) or not boxes.numel():
            return only_background(anchors, len(boxes), self.num_classes)
        counts = (labels >= 0) & ~ignore
        anchor_areas, areas = box_area(anchors), box_area(boxes)[..., None]
        best = Best(len(boxes), len(anchors), boxes)
        is_best, inside = torch.zeros_like(best.match, dtype=torch.bool), torch.zeros_like(best.value)
        for part in parts_of(boxes, len(anchors)):
            intersection = pairwise_intersection(boxes[:, part], anchors)  # B G A: reductions over rows
            iou = overlap(intersection, areas[:, part], anchor_areas).masked_fill_(~counts[:, part, None], -1)
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
        return Targets(anchor_labels, boxes.gather(1, best.match[..., None].expand(-1, -1, 4)))


@ASSIGNERS.register("atss")
class ATSSAssigner:
    """Adaptive training sample selection (Zhang et al. 2020, section 4): each ground truth sets its own threshold.

    Its candidates are, on each level, the `candidates` anchors whose centres are nearest to its own (all where the
    level has fewer; of equally near ones the first). Foreground are the candidates with an IoU of at least the mean
    plus the standard deviation (unbiased) of all its candidates' IoUs, and with a centre inside it, over 0.01 pixels
    from its sides. An anchor that several ground truths claim takes the one it overlaps most, the first of equals; all
    others are background, and ignored where more than half inside an ignore region. A ground truth too small to hold
    any anchor's centre gets none.

    Anchors of one cell share a centre: for n of them, the authors' code takes 9n candidates.
    """

    local = False  # a candidate counts even where it touches no box

    def __init__(self, num_classes: int, *, candidates: PositiveInt = 9):
        self.num_classes = num_classes
        self.candidates = candidates

    @torch.no_grad()
    def __call__(
        self, anchors: Tensor, boxes: Tensor, labels: Tensor, ignore: Tensor, level_sizes: tuple[int, ...]
    ) -> Targets:
        """anchors (A, 4), boxes (B, G, 4), labels (B, G) with -1 where padded, ignore (B, G) -> Targets. A, B and G may
        be 0. level_sizes: the anchors of each pyramid level, A in all."""
        if not len(anchors) or not boxes.numel():
            return only_background(anchors, len(boxes), self.num_classes)
        near = torch.cat(  # B G C
            [self._nearest(anchors, boxes[:, part], level_sizes) for part in parts_of(boxes, len(anchors))], dim=1
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
        best, inside = Best(len(boxes), len(anchors), iou), iou.new_zeros(len(boxes), len(anchors))
        for part in parts_of(boxes, len(anchors)):
            dense = iou.new_full((*labels[:, part].shape, len(anchors)), -1)
            best.update(dense.scatter_(2, near[:, part], claimed_iou[:, part]), part.start)
            intersection = pairwise_intersection(boxes[:, part], anchors)
            inside = inside.maximum(largest_inside(intersection, ignore[:, part]))
        anchor_labels = labels.gather(1, best.match).masked_fill(best.value < 0, self.num_classes)
        anchor_labels = ignore_inside_regions(anchor_labels, self.num_classes, inside, box_area(anchors))
        return Targets(anchor_labels, boxes.gather(1, best.match[..., None].expand(-1, -1, 4)))

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
