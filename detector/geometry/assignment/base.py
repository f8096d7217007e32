"""The base class of the assigners, their registry, and functions that the rules share."""

import torch
from torch import Tensor

from detector.core.registry import Registry
from detector.core.structures import IGNORED, GroundTruth, Predictions, Priors, Targets

MAX_PAIRS = 2**25  # pairs of ground truth and anchor in one operation: 128 MB for each of a few fp32 tensors


def parts_of(boxes: Tensor, num_anchors: int) -> list[slice]:
    """Return slices of the ground truths, so that each part can be compared with all anchors within the memory.

    Mostly there is one part.

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
    """Return the targets without any object: all priors are background.

    Args:
        priors: the A priors of an image.
        num_images: B.
        num_classes: K, the label of the background.
    """
    labels = torch.full((num_images, len(priors)), num_classes, device=priors.boxes.device)
    return Targets(labels, priors.boxes.expand(num_images, -1, -1), torch.zeros_like(labels))


class BestMatch:
    """The highest value so far of each anchor (B, A), and its ground truth. Of equal values, the first wins."""

    def __init__(self, num_images: int, num_anchors: int, like: Tensor):
        self.value = like.new_full((num_images, num_anchors), -1)
        self.match = torch.zeros(num_images, num_anchors, dtype=torch.int64, device=like.device)

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
