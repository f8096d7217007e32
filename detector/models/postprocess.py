"""Predictions to detections: score threshold, best candidates of each level, non-maximum suppression."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detector.core.structures import Detections, Predictions
from detector.geometry.boxes import clip, is_empty


@dataclass(frozen=True, slots=True)
class Candidates:
    """Boxes of a whole batch that compete: boxes (N, 4) xyxy in the batch's pixels, scores (N,), labels (N,) int64 in
    0..num_classes-1, image (N,) int64, each one's place in the batch."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    image: Tensor
    num_classes: int


@torch.no_grad()
def postprocess(
    predictions: Predictions,
    sizes: Tensor,
    original_sizes: Tensor,
    *,
    score_threshold: float,
    nms_iou: float,
    candidates_per_level: int,
    max_detections: int,
) -> list[Detections]:
    """The detections of each image in its original pixels.

    sizes and original_sizes (B, 2): (height, width) inside the padding and of the file. Of each level's anchors x
    classes with a score above the threshold the best `candidates_per_level` are decoded, clipped and suppressed
    class by class at `nms_iou`; the best `max_detections` of the image remain. Equal scores stay in the order of the
    anchors and, at one anchor, of the classes, whatever images and padding are beside. A box that has no area inside
    its image is no detection, as in mmdetection and detectron2; torchvision keeps such boxes. NaN passes for above the
    threshold, and for a box with area, so that it shows.
    """
    found = best_candidates(predictions, score_threshold, candidates_per_level)
    return suppress(found, sizes, original_sizes, nms_iou=nms_iou, max_detections=max_detections)


def best_candidates(predictions: Predictions, score_threshold: float, candidates_per_level: int) -> Candidates:
    """Of each image's levels the best anchors x classes with a score above the threshold, decoded and not clipped."""
    choose = partial(_first_of_equals, score_threshold=score_threshold)
    scores, candidates = best_of_levels(predictions, candidates_per_level, choose)
    image, column = (~(scores <= score_threshold)).nonzero(as_tuple=True)
    scores, candidates = scores[image, column], candidates[image, column]
    num_classes = predictions.logits.shape[2]
    anchor, label = candidates // num_classes, candidates % num_classes
    boxes = predictions.coder.decode(predictions.raw[image, anchor].float(), predictions.priors.boxes[anchor])
    return Candidates(boxes, scores, label, image, num_classes)


def suppress(
    found: Candidates, sizes: Tensor, original_sizes: Tensor, *, nms_iou: float, max_detections: int
) -> list[Detections]:
    """Each image's detections in its original pixels: clipped, without those that then have no area, suppressed class
    by class, the best `max_detections`."""
    image, label, scores = found.image, found.labels, found.scores
    sizes = sizes.to(found.boxes.dtype)
    boxes = clip(found.boxes, sizes[image, 0], sizes[image, 1])
    has_area = ~is_empty(boxes)
    # best first over the whole batch; fp64, since it moves each class of each image to a place of its own, far enough
    # for fp32 to lose parts of a pixel; a NaN would move all the others to nowhere
    places = boxes.double().nan_to_num(0)
    kept = batched_nms(places, scores.double(), image * found.num_classes + label, nms_iou).sort().values
    kept = kept[scores[kept].argsort(descending=True, stable=True)]
    scale = (original_sizes / sizes).flip(1).repeat(1, 2)
    boxes, scores, label, image = (boxes * scale[image])[kept], scores[kept], label[kept], image[kept]
    has_area = has_area[kept]  # a box without area overlaps none, so that it may stay until here: no further wait

    detections = []
    for i in range(len(sizes)):
        own = ((image == i) & has_area).nonzero()[:max_detections, 0]
        detections.append(Detections(boxes[own], scores[own], label[own]))
    return detections


def best_of_levels(
    predictions: Predictions, candidates_per_level: int, choose: Callable[[Tensor, int], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Scores and positions (anchor * K + class), (B, N) both, of the best anchors x classes of each image's levels.
    `choose` takes so many of the highest of each row, their values and columns, as `torch.topk` does."""
    num_classes = predictions.logits.shape[2]
    scores, candidates, start = [], [], 0
    for size in predictions.priors.level_sizes:
        # sigmoid after the choice: it is monotone, and only the candidates need it
        flat = predictions.logits[:, start : start + size].flatten(1).float()
        best, index = choose(flat, min(candidates_per_level, flat.shape[1]))
        scores.append(best.sigmoid())
        candidates.append(index + start * num_classes)
        start += size
    return torch.cat(scores, dim=1), torch.cat(candidates, dim=1)


def _first_of_equals(logits: Tensor, count: int, score_threshold: float) -> tuple[Tensor, Tensor]:
    """The `count` highest of each row of (B, N) and their columns, both (B, count), in the order of the columns; of
    equal ones the first (any, where they are below the threshold)."""
    best, column = logits.topk(count, dim=1, sorted=False)
    if count == 0:  # of no classes
        return best, column
    lowest = best.amin(dim=1)
    for row in (lowest.sigmoid() > score_threshold).nonzero()[:, 0]:  # which of the lowest topk took is its own affair
        taken = best[row] == lowest[row]
        column[row, taken] = (logits[row] == lowest[row]).nonzero()[: int(taken.sum()), 0]
    column = column.sort(dim=1).values
    return logits.gather(1, column), column
