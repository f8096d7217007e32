"""Losses on the overlap of decoded boxes: what the evaluation measures, the same at every scale."""

import math

import torch
from torch import Tensor

from detector.geometry.boxes import box_area, paired_intersection
from detector.losses.base import BOX_LOSSES, BoxLoss

EPSILON = 1e-7  # keeps quotients of empty boxes finite


def _sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    intersection = paired_intersection(a, b)
    return intersection, box_area(a) + box_area(b) - intersection


def _hull(a: Tensor, b: Tensor) -> Tensor:
    """The smallest box around both."""
    return torch.cat((torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])), dim=-1)


def _centre_penalty(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the hull."""
    width, height = _sides(_hull(a, b))
    offset = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    return offset.square().sum(dim=-1) / (width.square() + height.square() + EPSILON)


@BOX_LOSSES.register("iou")
class IoULoss(BoxLoss):
    """1 - IoU (the linear form of Yu et al. 2016, "UnitBox"). Boxes apart get no gradient: prefer GIoU."""

    on_boxes = True

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        intersection, union = _intersection_and_union(predicted, target)
        return 1 - intersection / (union + EPSILON)


@BOX_LOSSES.register("giou")
class GIoULoss(BoxLoss):
    """1 - IoU + (hull - union) / hull (Rezatofighi et al. 2019): boxes apart are drawn together."""

    on_boxes = True

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        intersection, union = _intersection_and_union(predicted, target)
        hull = box_area(_hull(predicted, target))
        return 1 - intersection / (union + EPSILON) + (hull - union) / (hull + EPSILON)


@BOX_LOSSES.register("diou")
class DIoULoss(IoULoss):
    """1 - IoU + d^2 / c^2, d the distance of the centres, c the diagonal of the hull (Zheng et al. 2020)."""

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        return super().elementwise(predicted, target) + _centre_penalty(predicted, target)


@BOX_LOSSES.register("ciou")
class CIoULoss(IoULoss):
    """DIoU + a v, v = 4 / pi^2 (atan(w_t / h_t) - atan(w / h))^2, the weight a = v / (1 - IoU + v) a constant for the
    gradient (Zheng et al. 2020): the aspect ratio counts too, the more the better the boxes overlap."""

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        one_minus_iou = super().elementwise(predicted, target)
        (width, height), (target_width, target_height) = _sides(predicted), _sides(target)
        turn = torch.atan2(target_width, target_height) - torch.atan2(width, height)
        v = 4 / math.pi**2 * turn.square()
        weight = (v / (one_minus_iou + v + EPSILON)).detach()
        return one_minus_iou + _centre_penalty(predicted, target) + weight * v
