"""How much focal loss pulls on an element, and the alpha at which foreground and background pull alike."""

import numpy as np


def focal_pull(norms: np.ndarray, gamma: float) -> np.ndarray:
    """|d/dx| of (1 - p_t)^gamma (-log p_t), without alpha: g^gamma (g - gamma (1 - g) log(1 - g)) for the gradient norm
    g = 1 - p_t of cross entropy, which it is at gamma = 0. norms (...) in 0..1."""
    rest = np.maximum(1 - norms, np.finfo(float).tiny)
    return norms**gamma * (norms - gamma * rest * np.log(rest))


def balancing_alpha(foreground: float, background: float) -> float:
    """alpha with alpha * foreground = (1 - alpha) * background, two sums of `focal_pull`; 0.5 for nothing at all."""
    total = foreground + background
    return background / total if total > 0 else 0.5


def initial_alpha(num_fg: float, num_bg: float, gamma: float, prior: float) -> float:
    """The balancing alpha while every score is still `prior`; num_fg and num_bg count elements."""
    return balancing_alpha(
        num_fg * float(focal_pull(np.array(1 - prior), gamma)), num_bg * float(focal_pull(np.array(prior), gamma))
    )
