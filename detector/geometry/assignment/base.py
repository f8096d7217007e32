"""What all assigners share: their contract, their registry, and the matching of many ground truths in parts."""

import torch
from torch import Tensor

from detector.core.registry import Registry
from detector.core.structures import IGNORED, GroundTruth, Predictions, Priors, Targets

MAX_PAIRS = 2**25  # of an image's ground truth and an anchor at a time: 128 MB for each of their few tensors


def parts_of(boxes: Tensor, num_anchors: int) -> list[slice]:
    """Ground truths (B, G, 4) in parts that meet all anchors at once without filling the memory; mostly one."""
    num_images, num_boxes = boxes.shape[:2]
    size = max(1, MAX_PAIRS // max(1, num_images * num_anchors))
    return [slice(start, start + size) for start in range(0, num_boxes, size)]


class Assigner:
    """A rule that gives each prior of each image its label and its object.

    needs_predictions: the rule reads what the model predicts. The training step then calls the rule after the forward
    pass, without gradient. Other rules run before the forward pass and get None.
    is_local: a prior that touches no object is background, and changes nothing for the other priors. The census then
    leaves such priors out.
    """

    needs_predictions = False
    is_local = False

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, priors: Priors, truth: GroundTruth, predictions: Predictions | None = None) -> Targets:
        """Return the targets of a batch. The numbers of images, of objects and of priors may be 0."""
        raise NotImplementedError


ASSIGNERS: Registry[Assigner] = Registry("assigner")


def matched_targets(truth: GroundTruth, labels: Tensor, matched: Tensor, quality: Tensor | None = None) -> Targets:
    """Return targets with the boxes of the matched objects.

    Args:
        truth: the objects, G of each image.
        labels: (B, A) int64, the label of each prior.
        matched: (B, A) int64, the index of each prior's object.
        quality: (B, A), the target score of foreground priors, or None.
    """
    boxes = truth.boxes.gather(1, matched[..., None].expand(-1, -1, 4))
    return Targets(labels, boxes, matched, quality)


def only_background(priors: Priors, num_images: int, num_classes: int) -> Targets:
    """Return what every rule gives without a ground truth or without a prior."""
    labels = torch.full((num_images, len(priors)), num_classes, device=priors.boxes.device)
    return Targets(labels, priors.boxes.expand(num_images, -1, -1), torch.zeros_like(labels))


class BestMatch:
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
