"""From predictions to detections: score threshold, best candidates of each level, non-maximum suppression.

There is no non-maximum suppression for predictions that are `nms_free`.
"""

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
    """The best boxes of a batch, before non-maximum suppression.

    Attributes:
        boxes: (N, 4) xyxy in pixels of the batch.
        scores: (N,).
        labels: (N,) int64 in 0..num_classes-1.
        image: (N,) int64, the index of the image in the batch.
        num_classes: K.
        nms_free: the boxes need no non-maximum suppression.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    image: Tensor
    num_classes: int
    nms_free: bool = False


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
    """Return the detections of each image, in pixels of the original image.

    Equal scores keep the order of the anchors, and for the same anchor the order of the classes. Other images of the
    batch and the padding do not change the result. A box without area inside its image is no detection, as in
    mmdetection and detectron2. torchvision returns these boxes. A NaN score counts as above the threshold, and a NaN
    box counts as a box with area. So a NaN is visible in the result.

    Args:
        predictions: the predictions of the model.
        sizes: (B, 2), height and width of each image inside the padding.
        original_sizes: (B, 2), height and width of each image in its file.
        score_threshold: a detection has a score above it.
        nms_iou: of two boxes of a class with an IoU above it, non-maximum suppression removes the lower score.
        candidates_per_level: the largest number of pairs of anchor and class of each level that are decoded.
        max_detections: the largest number of detections of an image.
    """
    candidates = best_candidates(predictions, score_threshold, candidates_per_level)
    return suppress(candidates, sizes, original_sizes, nms_iou=nms_iou, max_detections=max_detections)


def best_candidates(predictions: Predictions, score_threshold: float, candidates_per_level: int) -> Candidates:
    """Return the best pairs of anchor and class of each level, decoded and not clipped.

    Args:
        predictions: the predictions of the model.
        score_threshold: a candidate has a score above it.
        candidates_per_level: the largest number of candidates of each level of an image.
    """
    choose = partial(_first_of_equals, score_threshold=score_threshold)
    scores, candidates = best_of_levels(predictions, candidates_per_level, choose)
    image, column = (~(scores <= score_threshold)).nonzero(as_tuple=True)
    scores, candidates = scores[image, column], candidates[image, column]
    num_classes = predictions.logits.shape[2]
    anchor, label = candidates // num_classes, candidates % num_classes
    boxes = predictions.coder.decode(predictions.raw[image, anchor].float(), predictions.priors.boxes[anchor])
    return Candidates(boxes, scores, label, image, num_classes, predictions.nms_free)


def suppress(
    candidates: Candidates, sizes: Tensor, original_sizes: Tensor, *, nms_iou: float, max_detections: int
) -> list[Detections]:
    """Return the detections of each image, in pixels of the original image.

    The boxes are clipped to their image. Boxes without area are removed. Each class is suppressed separately. If the
    candidates are `nms_free`, no box is suppressed.

    Args:
        candidates: the boxes of the batch.
        sizes: (B, 2), height and width of each image inside the padding.
        original_sizes: (B, 2), height and width of each image in its file.
        nms_iou: of two boxes of a class with an IoU above it, non-maximum suppression removes the lower score.
        max_detections: the largest number of detections of an image.
    """
    image, label, scores = candidates.image, candidates.labels, candidates.scores
    sizes = sizes.to(candidates.boxes.dtype)
    boxes = clip(candidates.boxes, sizes[image, 0], sizes[image, 1])
    has_area = ~is_empty(boxes)
    if candidates.nms_free:
        keep = torch.arange(len(scores), device=scores.device)
    else:
        # batched_nms moves each class of each image to a separate region: in fp32 the coordinates would lose precision
        # there, and a NaN would make the regions of all other boxes NaN
        nms_boxes = boxes.double().nan_to_num(0)
        keep = batched_nms(nms_boxes, scores.double(), image * candidates.num_classes + label, nms_iou).sort().values
    keep = keep[scores[keep].argsort(descending=True, stable=True)]
    scale = (original_sizes / sizes).flip(1).repeat(1, 2)
    boxes, scores, label, image = (boxes * scale[image])[keep], scores[keep], label[keep], image[keep]
    has_area = has_area[keep]  # boxes without area suppress no other box; their removal here saves a wait for the GPU

    detections = []
    for i in range(len(sizes)):
        rows = ((image == i) & has_area).nonzero()[:max_detections, 0]
        detections.append(Detections(boxes[rows], scores[rows], label[rows]))
    return detections


def best_of_levels(
    predictions: Predictions, candidates_per_level: int, choose: Callable[[Tensor, int], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return the scores and the positions (anchor * K + class) of the best pairs of each level, (B, N) both.

    Args:
        predictions: the predictions of the model.
        candidates_per_level: the largest number of pairs of each level of an image.
        choose: a function of logits (B, M) and a count. It returns the highest logits of each row and their columns, as
            `torch.topk` does.
    """
    num_classes = predictions.logits.shape[2]
    scores, candidates, start = [], [], 0
    for size in predictions.priors.level_sizes:
        # sigmoid is monotone, so only the candidates need it
        flat = predictions.ranking_logits[:, start : start + size].flatten(1).float()
        best, index = choose(flat, min(candidates_per_level, flat.shape[1]))
        scores.append(best.sigmoid())
        candidates.append(index + start * num_classes)
        start += size
    return torch.cat(scores, dim=1), torch.cat(candidates, dim=1)


def _first_of_equals(logits: Tensor, count: int, score_threshold: float) -> tuple[Tensor, Tensor]:
    """Return the `count` highest logits of each row (B, N) and their columns, (B, count) both, in column order.

    Of equal logits, the first logits are chosen. Below the threshold, any of the equal logits may be chosen.
    """
    best, column = logits.topk(count, dim=1, sorted=False)
    if count == 0:  # there are no classes
        return best, column
    lowest = best.amin(dim=1)
    for row in (lowest.sigmoid() > score_threshold).nonzero()[:, 0]:  # topk does not define which equal logits it takes
        is_lowest = best[row] == lowest[row]
        column[row, is_lowest] = (logits[row] == lowest[row]).nonzero()[: int(is_lowest.sum()), 0]
    column = column.sort(dim=1).values
    return logits.gather(1, column), column
