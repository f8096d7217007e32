"""Criteria of hand-made losses."""

import torch
from torch import Tensor

from detector.core.structures import BoxQuality, Targets
from detector.losses import ANCHOR_SAMPLERS
from detector.losses.base import BoxLoss, ClassificationLoss
from detector.losses.criterion import Criterion
from detector.losses.settings import LossSettings


def criterion_of_losses(
    classification: ClassificationLoss,
    box: BoxLoss,
    num_classes: int,
    *,
    normaliser: str = "global",
    box_weight: float = 1.0,
    sampler: str = "all",
    box_rows: str = "equal",
    box_quality: BoxQuality | None = None,
    **sampling: float,
) -> Criterion:
    """Return a criterion of a classification loss and a box loss. `sampling` are the parameters of the sampler."""
    settings = LossSettings.model_validate({"box_weight": box_weight, "normaliser": normaliser, "box_rows": box_rows})
    anchor_sampler = ANCHOR_SAMPLERS.build(sampler, num_classes, **sampling)
    return Criterion(settings, classification, [box], anchor_sampler, num_classes, box_quality)


def make_targets(labels: Tensor, boxes: Tensor) -> Targets:
    """Return targets of hand-made boxes (B, A, 4). Each box is a separate object."""
    return Targets(labels, boxes, torch.arange(labels.shape[1]).expand_as(labels))
