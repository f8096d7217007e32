"""Predictions to detections: score threshold, best candidates of each level, non-maximum suppression."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detector.geometry.boxes import clip, decode
from detector.structures import Detections, Predictions


def best_of_levels(predictions: Predictions, candidates_per_level: int) -> tuple[Tensor, Tensor]:
    """Scores (B, C) of each level's best anchors x classes, C of all levels together, in no order; their places in the
    flattened (A, K): anchor * K + class."""
    num_images, _, num_classes = predictions.logits.shape
    scores, candidates, start = [], [], 0
    for size in predictions.level_sizes:
        # sigmoid after the choice: it is monotone, and only the candidates need it
        flat = predictions.logits[:, start : start + size].reshape(num_images, -1).float()
        best, index = flat.topk(min(candidates_per_level, flat.shape[1]), dim=1, sorted=False)
        scores.append(best.sigmoid())
        candidates.append(index + start * num_classes)
        start += size
    return torch.cat(scores, dim=1), torch.cat(candidates, dim=1)


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
    class by class at `nms_iou`; the best `max_detections` of the image remain.
    """
    num_images, _, num_classes = predictions.logits.shape
    scores, candidates = best_of_levels(predictions, candidates_per_level)
    image, column = (scores > score_threshold).nonzero(as_tuple=True)
    scores, candidates = scores[image, column], candidates[image, column]
    anchor, label = candidates // num_classes, candidates % num_classes
    boxes = decode(predictions.deltas[image, anchor].float(), predictions.anchors[anchor])
    sizes = sizes.to(boxes.dtype)
    boxes = clip(boxes, sizes[image, 0], sizes[image, 1])
    # best first over the whole batch; fp64, since it moves each class of each image to a place of its own, far enough
    # for fp32 to lose parts of a pixel
    kept = batched_nms(boxes.double(), scores.double(), image * num_classes + label, nms_iou)
    scale = (original_sizes / sizes).flip(1).repeat(1, 2)
    boxes, scores, label, image = (boxes * scale[image])[kept], scores[kept], label[kept], image[kept]

    detections = []
    for i in range(num_images):
        own = (image == i).nonzero()[:max_detections, 0]
        detections.append(Detections(boxes[own], scores[own], label[own]))
    return detections
