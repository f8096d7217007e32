"""The loss library: importing it registers every loss."""

from detector.losses import cross_entropy, focal, ghm, iou, smooth_l1  # noqa: F401  (registers the losses)
from detector.registry import BOX_LOSSES, CLASSIFICATION_LOSSES

__all__ = ["BOX_LOSSES", "CLASSIFICATION_LOSSES"]
