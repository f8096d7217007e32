"""The base class of the assigners, their registry, and functions that the rules share."""

import math

import torch
from torch import Tensor

from detector.core.registry import Registry
from detector.core.structures import IGNORED, GroundTruth, Predictions, Priors, Targets
from detector.geometry.boxes import box_area, paired_iou, pairwise_intersection

MAX_PAIRS = 2**25  # pairs of ground truth and anchor in one operation: 128 MB for each of a few fp32 tensors


def parts_of(boxes: Tensor, num_anchors: int) -> list[slice]:
    """Return slices of the ground truths, so that each part can be compared with all anchors within the memory.

    Usually the list has a single slice.

    Args:
        boxes: (B, G, 4), the ground truths.
        num_anchors: the number of anchors.
    """
    num_images, num_boxes = boxes.shape[:2]
    size = max(1, MAX_PAIRS // max(1, num_images * num_anchors))
    return [slice(start, start + size) for start in range(0, num_boxes, size)]


class Assigner:
    """A rule that gives each prior of each image its label and its object.

    Attributes:
        gives_quality: the targets have a quality.
        needs_predictions: the rule reads the predictions of the model. The training step then calls the rule after the
            forward pass, without gradient. Other rules run before the forward pass and get None.
        is_local: a prior that overlaps no object is background, and has no effect on the other priors. The census then
            does not compute these priors.
    """

    gives_quality = False
    needs_predictions = False
    is_local = False

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, priors: Priors, truth: GroundTruth, predictions: Predictions | None = None) -> Targets:
        """Return the targets of a batch.

        The numbers of images, of objects and of priors may be 0.

        Args:
            priors: the A priors of an image.
            truth: the objects of the B images.
            predictions: the predictions of the model, if the rule needs them.
        """
        raise NotImplementedError

    def one_to_one(self) -> "Assigner | None":
        """Return the rule for the one-to-one head, or None.

        The rule gives each object at most one prior, by the measure of this rule.
        """
        return None


ASSIGNERS: Registry[Assigner] = Registry("assigner")


def matched_boxes(truth: GroundTruth, matched: Tensor) -> Tensor:
    """Return the boxes of the matched objects, (B, A, 4).

    Args:
        truth: the objects, G of each image.
        matched: (B, A) int64, the index of each prior's object.
    """
    return truth.boxes.gather(1, matched[..., None].expand(-1, -1, 4))


def matched_iou(truth: GroundTruth, matched: Tensor, predictions: Predictions) -> Tensor:
    """Return the IoU of each predicted box and the matched object, at most 1, (B, A).

    Args:
        truth: the objects, G of each image.
        matched: (B, A) int64, the index of each prior's object.
        predictions: the predictions of the model.
    """
    return paired_iou(matched_boxes(truth, matched), predictions.boxes).clamp(max=1)


def matched_targets(truth: GroundTruth, labels: Tensor, matched: Tensor, quality: Tensor | None = None) -> Targets:
    """Return targets with the boxes of the matched objects.

    Args:
        truth: the objects, G of each image.
        labels: (B, A) int64, the label of each prior.
        matched: (B, A) int64, the index of each prior's object.
        quality: (B, A), the target score of foreground priors, or None.
    """
    return Targets(labels, matched_boxes(truth, matched), matched, quality)


def only_background(priors: Priors, num_images: int, num_classes: int, *, has_quality: bool = False) -> Targets:
    """Return the targets without any object: all priors are background.

    Args:
        priors: the A priors of an image.
        num_images: B.
        num_classes: K, the label of the background.
        has_quality: whether the targets have qualities, which are 0.
    """
    labels = torch.full((num_images, len(priors)), num_classes, device=priors.boxes.device)
    boxes, quality = priors.boxes.expand(num_images, -1, -1), torch.zeros(labels.shape, device=labels.device)
    return Targets(labels, boxes, torch.zeros_like(labels), quality if has_quality else None)


class BestMatch:
    """The highest value so far of each prior (B, A), and its ground truth. Of equal values, the first wins.

    The value is -inf, and the ground truth is the first, where a prior has no other value.

    Attributes:
        value: (B, A).
        match: (B, A) int64.
    """

    def __init__(self, num_images: int, num_priors: int, like: Tensor):
        self.value = like.new_full((num_images, num_priors), -math.inf)
        self.match = torch.zeros(num_images, num_priors, dtype=torch.int64, device=like.device)

    @property
    def is_matched(self) -> Tensor:
        """Whether a prior has a value, (B, A) bool."""
        return self.value > -math.inf

    def update(self, values: Tensor, start: int) -> None:
        """Add the values of some ground truths.

        Args:
            values: (B, G', A), the values of G' consecutive ground truths.
            start: the index of the first of these ground truths.
        """
        value, match = values.max(dim=1)
        is_better = value > self.value
        self.value = value.where(is_better, self.value)
        self.match = (match + start).where(is_better, self.match)

    def update_at(self, index: Tensor, values: Tensor, start: int) -> None:
        """Add the values of some ground truths at some priors.

        Args:
            index: (B, G', C), the priors of G' consecutive ground truths, without repetition.
            values: (B, G', C), the values. -inf is no value.
            start: the index of the first of these ground truths.
        """
        dense = values.new_full((*index.shape[:2], self.value.shape[1]), -math.inf)
        self.update(dense.scatter_(2, index, values), start)

    def lowest(self, values: Tensor, num_boxes: int) -> Tensor:
        """Return the lowest value over the priors that are matched with each ground truth, (B, G).

        The result is inf for a ground truth without a matched prior.

        Args:
            values: (B, A).
            num_boxes: G.
        """
        lowest = values.new_full((len(values), num_boxes), math.inf)
        return lowest.scatter_reduce(1, self.match, values.where(self.is_matched, math.inf), "amin")

    def keep_lowest(self, values: Tensor, num_boxes: int) -> None:
        """Keep only the match with the lowest value for each ground truth. Of equal values, the first prior wins.

        Args:
            values: (B, A).
            num_boxes: G.
        """
        is_lowest = self.is_matched & (values == self.lowest(values, num_boxes).gather(1, self.match))
        column = torch.arange(values.shape[1], device=values.device, dtype=values.dtype).expand_as(values)
        first = self.lowest(column.where(is_lowest, math.inf), num_boxes).gather(1, self.match)
        self.value = self.value.where(is_lowest & (column == first), -math.inf)


def first_of_lowest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the lowest values of each row and their columns, (..., C) both. Of equal values, the first columns win.

    Args:
        values: (..., N) fp32 from 0 to inf, without NaN.
        count: the number of values of a row. C is at most N.
    """
    # the bits of non-negative floats have the order of the floats; the column in the lower half breaks ties
    key = values.view(torch.int32).long().bitwise_left_shift_(32)
    key |= torch.arange(values.shape[-1], device=values.device)
    lowest = key.topk(min(count, values.shape[-1]), largest=False).values
    index = lowest.bitwise_and_(0xFFFFFFFF)
    return values.gather(-1, index), index


def is_inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Return whether each point is inside each box and not on a side, (B, G, A) bool.

    Args:
        points: (A, 2).
        boxes: (B, G, 4).
    """
    x, y = points.T.contiguous()
    left, top, right, bottom = boxes[..., None].unbind(dim=2)
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def is_central(priors: Priors, boxes: Tensor, radius: float) -> Tensor:
    """Return whether the center of each prior is near the center of each box in x and in y, (B, G, A) bool.

    Args:
        priors: the A priors.
        boxes: (B, G, 4).
        radius: the difference of the centers has to be below this number of strides of the prior.
    """
    x, y = priors.centers.T.contiguous()
    left, top, right, bottom = boxes[..., None].unbind(dim=2)
    limit = radius * priors.strides()
    return ((x - (left + right) / 2).abs_() < limit) & ((y - (top + bottom) / 2).abs_() < limit)


def class_logits(predictions: Predictions, labels: Tensor) -> Tensor:
    """Return the ranking logits of the classes of some objects, (B, G, A) fp32.

    Args:
        predictions: the predictions of the model.
        labels: (B, G) int64, the classes. Padding has any class.
    """
    by_class = predictions.ranking_logits.transpose(1, 2)
    return by_class.gather(1, labels.clamp(min=0)[..., None].expand(-1, -1, by_class.shape[2])).float()


def best_targets(
    best: BestMatch, priors: Tensor, truth: GroundTruth, num_classes: int, quality: Tensor | None = None
) -> Targets:
    """Return the targets of priors that take their best object.

    A prior without an object is background. It is ignored if more than half of its area is inside an ignore region.

    Args:
        best: the object of each prior.
        priors: (A, 4), the boxes of the priors.
        truth: the objects of the B images.
        num_classes: K, the label of the background.
        quality: (B, A), the target score of each prior with an object, or None.
    """
    labels = truth.labels.gather(1, best.match).where(best.is_matched, num_classes)
    inside = torch.zeros_like(best.value)
    for part in parts_of(truth.boxes, len(priors)):
        intersection = pairwise_intersection(truth.boxes[:, part], priors)
        inside = inside.maximum(largest_inside(intersection, truth.ignore[:, part]))
    labels = ignore_inside_regions(labels, num_classes, inside, box_area(priors))
    return matched_targets(truth, labels, best.match, None if quality is None else quality.where(best.is_matched, 0))


def ignore_inside_regions(labels: Tensor, background: int, inside: Tensor, anchor_areas: Tensor) -> Tensor:
    """Return the labels, in which background anchors that are more than half inside an ignore region are ignored.

    Args:
        labels: (B, A) int64.
        background: the label of the background.
        inside: (B, A), the largest intersection area of each anchor with an ignore region.
        anchor_areas: (A,), the areas of the anchors.
    """
    return labels.masked_fill((labels == background) & (inside > 0.5 * anchor_areas), IGNORED)


def largest_inside(intersection: Tensor, ignore: Tensor) -> Tensor:
    """Return the largest intersection area of each anchor with an ignore region, (B, A).

    Args:
        intersection: (B, G, A), the intersection areas of ground truths and anchors. They are overwritten.
        ignore: (B, G) bool, whether a ground truth is an ignore region.
    """
    return intersection.masked_fill_(~ignore[..., None], 0).amax(dim=1)
