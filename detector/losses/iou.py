"""Losses on the overlap of decoded boxes.

The evaluation measures the same overlap. The losses do not depend on the scale of the boxes. In all formulas, hull is
the smallest box around the predicted and the true box.
"""

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
    """Return the smallest box around both boxes."""
    return torch.cat((torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])), dim=-1)


def _center_penalty(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distance of the centers over the squared diagonal of the hull."""
    width, height = _sides(_hull(a, b))
    offset = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    return offset.square().sum(dim=-1) / (width.square() + height.square() + EPSILON)


@BOX_LOSSES.register("iou")
class IoULoss(BoxLoss):
    """IoU loss: 1 - IoU, the linear form of Yu et al. 2016, "UnitBox", whose loss is -ln(IoU).

    Shapes: boxes (..., 4) xyxy in pixels, as in `BoxLoss.forward`.

    When to use: as the baseline of the overlap losses. Boxes that do not overlap get no gradient, so prefer `giou`.
    """

    on_boxes = True

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each box, (...). See `BoxLoss.elementwise`."""
        intersection, union = _intersection_and_union(predicted, target)
        return 1 - intersection / (union + EPSILON)


@BOX_LOSSES.register("giou")
class GIoULoss(BoxLoss):
    """Generalized IoU loss: 1 - IoU + (area of the hull - area of the union) / area of the hull.

    Source: Rezatofighi et al. 2019, "Generalized Intersection over Union", algorithms 1 and 2.

    Shapes: boxes (..., 4) xyxy in pixels, as in `BoxLoss.forward`.

    When to use: as the default overlap loss. Boxes that do not overlap also get a gradient.
    """

    on_boxes = True

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each box, (...). See `BoxLoss.elementwise`."""
        intersection, union = _intersection_and_union(predicted, target)
        hull = box_area(_hull(predicted, target))
        return 1 - intersection / (union + EPSILON) + (hull - union) / (hull + EPSILON)


@BOX_LOSSES.register("diou")
class DIoULoss(IoULoss):
    """Distance IoU loss: 1 - IoU + d^2 / c^2.

    d is the distance of the centers, and c is the diagonal of the hull (Zheng et al. 2020, "Distance-IoU Loss",
    equation 7).

    Shapes: boxes (..., 4) xyxy in pixels, as in `BoxLoss.forward`.

    When to use: for faster convergence than with `giou`, which the paper reports.
    """

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each box, (...). See `BoxLoss.elementwise`."""
        return super().elementwise(predicted, target) + _center_penalty(predicted, target)


@BOX_LOSSES.register("ciou")
class CIoULoss(IoULoss):
    """Complete IoU loss: 1 - IoU + d^2 / c^2 + a v, the distance IoU loss with a term for the aspect ratio.

    v = 4 / pi^2 (atan(w_t / h_t) - atan(w / h))^2. w and h are the width and the height of the predicted box. w_t and
    h_t are those of the true box. a = v / (1 - IoU + v) gets no gradient, and grows with the overlap. Source: Zheng et
    al. 2020, "Distance-IoU Loss", equations 8 to 11.

    Shapes: boxes (..., 4) xyxy in pixels, as in `BoxLoss.forward`.

    When to use: where the aspect ratio of the boxes matters.
    """

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each box, (...). See `BoxLoss.elementwise`."""
        one_minus_iou = super().elementwise(predicted, target)
        (width, height), (target_width, target_height) = _sides(predicted), _sides(target)
        angle = torch.atan2(target_width, target_height) - torch.atan2(width, height)
        v = 4 / math.pi**2 * angle.square()
        weight = (v / (one_minus_iou + v + EPSILON)).detach()
        return one_minus_iou + _center_penalty(predicted, target) + weight * v
