"""Losses and their gradients at the speed of memory; one dispatch point for their implementations."""

from detector.kernels.dispatch import (
    BACKENDS,
    elementwise_terms,
    focal_terms,
    gradient_norm_histogram,
    harmonised_terms,
    sigmoid_focal_loss,
)

__all__ = [
    "BACKENDS",
    "elementwise_terms",
    "focal_terms",
    "gradient_norm_histogram",
    "harmonised_terms",
    "sigmoid_focal_loss",
]
