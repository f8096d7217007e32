"""The focal loss and its gradient at the speed of memory; one dispatch point for its implementations."""

from detector.kernels.dispatch import BACKENDS, focal_terms, sigmoid_focal_loss

__all__ = ["BACKENDS", "focal_terms", "sigmoid_focal_loss"]
