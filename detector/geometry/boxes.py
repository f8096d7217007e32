"""Boxes as tensors (..., 4), xyxy in pixels: overlap and clipping."""

import torch
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def is_empty(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...) whether a box has no area: its width or its height is not above 0. NaN is not empty."""
    return (boxes[..., 2:] <= boxes[..., :2]).any(dim=-1)


def pairwise_intersection(a: Tensor, b: Tensor) -> Tensor:
    """(..., M, 4) x (..., N, 4) -> (..., M, N) intersection areas; leading dimensions broadcast."""
    # one coordinate at a time: no (..., M, N, 2) intermediate; side by side in memory, or nothing is vectorised
    left, top, right, bottom = b.movedim(-1, 0).contiguous()[..., None, :]
    width = torch.minimum(a[..., :, None, 2], right).sub_(torch.maximum(a[..., :, None, 0], left))
    height = torch.minimum(a[..., :, None, 3], bottom).sub_(torch.maximum(a[..., :, None, 1], top))
    return width.clamp_(min=0).mul_(height.clamp_(min=0))


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., M, 4) x (..., N, 4) -> (..., M, N) intersection over union, 0 where both boxes are empty."""
    return overlap(pairwise_intersection(a, b), box_area(a)[..., :, None], box_area(b)[..., None, :])


def paired_intersection(a: Tensor, b: Tensor) -> Tensor:
    """(..., 4) x (..., 4) -> (...) intersection areas of the boxes in the same place."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    return (high - low).clamp(min=0).prod(dim=-1)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., 4) x (..., 4) -> (...) intersection over union of the boxes in the same place, 0 where both are empty."""
    return overlap(paired_intersection(a, b), box_area(a), box_area(b))


def overlap(intersection: Tensor, area: Tensor, other_area: Tensor) -> Tensor:
    """Intersection over union from areas that broadcast, 0 where the union is empty."""
    union = (area + other_area).sub_(intersection)
    return intersection / union.clamp_(min=torch.finfo(union.dtype).tiny)


def clip(boxes: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """Boxes (..., 4) moved inside images whose heights and widths broadcast against (...)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    zero = boxes.new_zeros(())
    columns = (x.clamp(zero, widths) for x in (x1, x2))
    rows = (y.clamp(zero, heights) for y in (y1, y2))
    (x1, x2), (y1, y2) = columns, rows
    return torch.stack((x1, y1, x2, y2), dim=-1)
