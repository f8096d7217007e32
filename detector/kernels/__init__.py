"""Fast implementations of losses with their gradients, and the function that selects one of them."""

from detector.kernels.dispatch import (
    BACKENDS,
    elementwise_terms,
    focal_terms,
    gradient_norm_histogram,
    harmonized_terms,
    sigmoid_focal_loss,
)

__all__ = [
    "BACKENDS",
    "elementwise_terms",
    "focal_terms",
    "gradient_norm_histogram",
    "harmonized_terms",
    "sigmoid_focal_loss",
]
