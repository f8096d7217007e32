"""The gradient of focal loss, and the alpha that balances the gradients of foreground and background."""

import numpy as np


def focal_gradient(norms: np.ndarray, gamma: float) -> np.ndarray:
    """Return the absolute gradient |d/dx| of focal loss (1 - p_t)^gamma (-log p_t), without alpha.

    The gradient is g^gamma (g - gamma (1 - g) log(1 - g)) for the gradient norm g = 1 - p_t of cross entropy. At
    gamma = 0 it is g.

    Args:
        norms: the gradient norms g, (...) in 0..1.
        gamma: the gamma of focal loss.
    """
    p_t = np.maximum(1 - norms, np.finfo(float).tiny)
    return norms**gamma * (norms - gamma * p_t * np.log(p_t))


def balancing_alpha(foreground: float, background: float) -> float:
    """Return the alpha at which alpha * foreground = (1 - alpha) * background; 0.5 where both sums are 0.

    Args:
        foreground: the sum of `focal_gradient` over the foreground elements.
        background: the sum of `focal_gradient` over the background elements.
    """
    total = foreground + background
    return background / total if total > 0 else 0.5


def initial_alpha(num_fg: float, num_bg: float, gamma: float, prior: float) -> float:
    """Return the balancing alpha while every score is `prior`.

    Args:
        num_fg: the number of foreground elements.
        num_bg: the number of background elements.
        gamma: the gamma of focal loss.
        prior: the initial score, 0..1.
    """
    return balancing_alpha(
        num_fg * float(focal_gradient(np.array(1 - prior), gamma)),
        num_bg * float(focal_gradient(np.array(prior), gamma)),
    )
