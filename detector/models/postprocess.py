"""Predictions to detections: score threshold, best candidates of each level, non-maximum suppression."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detector.geometry.boxes import clip, decode
from detector.structures import Detections, Predictions


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
    anchors and, at one anchor, of the classes, whatever images and padding are beside. NaN passes for above the
    threshold, so that it shows.
    """
    num_images, _, num_classes = predictions.logits.shape
    scores, candidates, start = [], [], 0
    for size in predictions.level_sizes:
        # sigmoid after the choice: it is monotone, and only the candidates need it
        flat = predictions.logits[:, start : start + size].reshape(num_images, -1).float()
        best, index = _best(flat, min(candidates_per_level, flat.shape[1]), score_threshold)
        scores.append(best.sigmoid())
        candidates.append(index + start * num_classes)
        start += size
    scores, candidates = torch.cat(scores, dim=1), torch.cat(candidates, dim=1)

    image, column = (~(scores <= score_threshold)).nonzero(as_tuple=True)
    scores, candidates = scores[image, column], candidates[image, column]
    anchor, label = candidates // num_classes, candidates % num_classes
    boxes = decode(predictions.deltas[image, anchor].float(), predictions.anchors[anchor])
    sizes = sizes.to(boxes.dtype)
    boxes = clip(boxes, sizes[image, 0], sizes[image, 1])
    # best first over the whole batch; fp64, since it moves each class of each image to a place of its own, far enough
    # for fp32 to lose parts of a pixel
    kept = batched_nms(boxes.double(), scores.double(), image * num_classes + label, nms_iou).sort().values
    kept = kept[scores[kept].argsort(descending=True, stable=True)]
    scale = (original_sizes / sizes).flip(1).repeat(1, 2)
    boxes, scores, label, image = (boxes * scale[image])[kept], scores[kept], label[kept], image[kept]

    detections = []
    for i in range(num_images):
        own = (image == i).nonzero()[:max_detections, 0]
        detections.append(Detections(boxes[own], scores[own], label[own]))
    return detections


def _best(logits: Tensor, count: int, score_threshold: float) -> tuple[Tensor, Tensor]:
    """The `count` highest of each row of (B, N) and their columns, both (B, count), in the order of the columns; of
    equal ones the first (any, where they are below the threshold)."""
    best, column = logits.topk(count, dim=1, sorted=False)
    lowest = best.amin(dim=1)
    for row in (lowest.sigmoid() > score_threshold).nonzero()[:, 0]:  # which of the lowest topk took is its own affair
        above = (logits[row] > lowest[row]).nonzero()[:, 0]
        equal = (logits[row] == lowest[row]).nonzero()[: count - len(above), 0]
        column[row] = torch.cat((above, equal))
    column = column.sort(dim=1).values
    return logits.gather(1, column), column
