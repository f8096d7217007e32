"""The overlap and the clipping of boxes. Boxes are tensors (..., 4), xyxy in pixels."""

import torch
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """Return the areas (...) of boxes (..., 4), in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def is_empty(boxes: Tensor) -> Tensor:
    """Return whether each box (..., 4) has a width or a height of at most 0, (...) bool. NaN is not empty."""
    return (boxes[..., 2:] <= boxes[..., :2]).any(dim=-1)


def pairwise_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection area of each pair of boxes, (..., M, N).

    Args:
        a: (..., M, 4). The leading dimensions of `a` and `b` broadcast.
        b: (..., N, 4).
    """
    # the coordinates are computed separately to avoid an intermediate (..., M, N, 2); vectorization needs each of them
    # to be contiguous
    left, top, right, bottom = b.movedim(-1, 0).contiguous()[..., None, :]
    width = torch.minimum(a[..., :, None, 2], right).sub_(torch.maximum(a[..., :, None, 0], left))
    height = torch.minimum(a[..., :, None, 3], bottom).sub_(torch.maximum(a[..., :, None, 1], top))
    return width.clamp_(min=0).mul_(height.clamp_(min=0))


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union of each pair of boxes, (..., M, N), with 0 where both boxes are empty.

    Args:
        a: (..., M, 4). The leading dimensions of `a` and `b` broadcast.
        b: (..., N, 4).
    """
    return overlap(pairwise_intersection(a, b), box_area(a)[..., :, None], box_area(b)[..., None, :])


def paired_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection areas (...) of the boxes at the same index.

    Args:
        a: (..., 4).
        b: (..., 4).
    """
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    return (high - low).clamp(min=0).prod(dim=-1)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union (...) of the boxes at the same index, with 0 where both boxes are empty.

    Args:
        a: (..., 4).
        b: (..., 4).
    """
    return overlap(paired_intersection(a, b), box_area(a), box_area(b))


def overlap(intersection: Tensor, area: Tensor, other_area: Tensor) -> Tensor:
    """Return the intersection over union from areas that broadcast, with 0 where the union is empty.

    Args:
        intersection: the intersection areas.
        area: the areas of the first boxes.
        other_area: the areas of the second boxes.
    """
    union = (area + other_area).sub_(intersection)
    return intersection / union.clamp_(min=torch.finfo(union.dtype).tiny)


def clip(boxes: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """Clip boxes (..., 4) to their images.

    Args:
        boxes: (..., 4).
        heights: the heights of the images in pixels. They broadcast with (...).
        widths: the widths of the images in pixels. They broadcast with (...).
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    zero = boxes.new_zeros(())
    columns = (x.clamp(zero, widths) for x in (x1, x2))
    rows = (y.clamp(zero, heights) for y in (y1, y2))
    (x1, x2), (y1, y2) = columns, rows
    return torch.stack((x1, y1, x2, y2), dim=-1)
