"""The loss library: importing it registers every loss."""

from detector.core.registry import ANCHOR_SAMPLERS, BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.losses import cross_entropy, focal, ghm, iou, mining, quality, ranking, samplers, smooth_l1  # noqa: F401

__all__ = ["ANCHOR_SAMPLERS", "BOX_LOSSES", "CLASSIFICATION_LOSSES"]
