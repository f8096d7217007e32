"""The loss of the box quality that a head predicts for each box, and the target of this quality."""

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.core.structures import BoxQuality, Predictions, Targets
from detector.geometry.boxes import paired_iou
from detector.losses.base import BoxLoss


class BoxQualityLoss(BoxLoss):
    """Binary cross entropy of the predicted box quality over the foreground, with a target in 0..1.

    Source: Tian et al. 2019, "FCOS", section 3.3 (center-ness). Wu et al. 2020, "IoU-aware Single-stage Object
    Detector" (IoU).

    Args:
        kind: the target. `centerness` is the center-ness of the prior in the true box (see `centerness`). `iou` is the
            IoU of the predicted and the true box, without gradient.
    """

    def __init__(self, kind: BoxQuality):
        super().__init__()
        self.kind = kind

    def rows(self, predictions: Predictions, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the predicted logits and the targets, (B, A, 1) both.

        Args:
            predictions: the predictions of the model.
            targets: the targets of the predictions.
        """
        assert predictions.box_quality is not None
        with torch.no_grad():
            if self.kind == "centerness":
                target = centerness(predictions.priors.centers, targets.boxes)
            else:
                target = paired_iou(predictions.boxes.detach(), targets.boxes)
        return predictions.box_quality[..., None], target[..., None]

    def elementwise(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row, (..., 1). See `BoxLoss.elementwise`."""
        return F.binary_cross_entropy_with_logits(predicted, target.to(predicted.dtype), reduction="none")


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """Return the center-ness (...) of points in boxes: sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).

    l, t, r and b are the distances from the point to the sides of the box (Tian et al. 2019, "FCOS", equation 3). The
    center-ness is 1 at the center of the box, and 0 at its sides and outside.

    Args:
        points: (..., 2), x and y.
        boxes: (..., 4) xyxy.
    """
    before, after = points - boxes[..., :2], boxes[..., 2:] - points
    shares = torch.minimum(before, after).clamp(min=0) / torch.maximum(before, after).clamp(min=1e-6)
    return shares.prod(dim=-1).sqrt()
