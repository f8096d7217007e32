"""The loss library. Importing this package registers every loss and every anchor sampler."""

from detector.losses import cross_entropy, distribution, focal, ghm, iou, mining, quality, ranking, samplers, smooth_l1  # noqa: F401
from detector.losses.base import BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.losses.samplers import ANCHOR_SAMPLERS

__all__ = ["ANCHOR_SAMPLERS", "BOX_LOSSES", "CLASSIFICATION_LOSSES"]
