"""Reference implementations of losses, element by element in float64, from the formulas of the papers.

The code is simple on purpose: it has Python loops, `math` and gradients derived by hand, and shares nothing with
`detector`. The module also draws random inputs.
Sources: focal loss, Lin et al. 2017 (gradient: appendix B); gradient harmonized losses, Li et al. 2019; smooth L1,
Girshick 2015.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

IGNORED = -1
# random gradient norms keep a distance from multiples of 1 / 30, which are the edges of 1, 2, 3, 5, 6, 10, 15, 30 bins
EDGES = 30
EDGE_MARGIN = 1e-3  # in bins: far above the rounding of fp32, so fp32 and float64 choose the same bin


@dataclass(frozen=True)
class Expected:
    """The expected value and gradient of a loss.

    Attributes:
        parts: the summands of the loss. A classification loss has foreground and background.
        gradient: the gradient with respect to the logits or predictions.
    """

    parts: tuple[float, ...]
    gradient: np.ndarray

    @property
    def value(self) -> float:
        return sum(self.parts)


def focal_element(x: float, target: bool, alpha: float | None, gamma: float) -> tuple[float, float]:
    """FL = -alpha_t (1 - p_t)^gamma log p_t and dFL/dx = alpha_t y (1 - p_t)^gamma (gamma p_t log p_t + p_t - 1)."""
    y = 1.0 if target else -1.0
    p_t = 1 / (1 + math.exp(-y * x))
    one_minus_p_t = 1 / (1 + math.exp(y * x))
    log_p_t = -math.log1p(math.exp(-y * x))
    alpha_t = 1.0 if alpha is None else alpha if target else 1 - alpha
    value = -alpha_t * one_minus_p_t**gamma * log_p_t
    return value, alpha_t * y * one_minus_p_t**gamma * (gamma * p_t * log_p_t - one_minus_p_t)


def cross_entropy_element(x: float, target: bool) -> tuple[float, float]:
    """CE = -t log p - (1 - t) log(1 - p) and dCE/dx = p - t, for target t."""
    p = 1 / (1 + math.exp(-x))
    return (math.log1p(math.exp(-x)), -1 / (1 + math.exp(x))) if target else (math.log1p(math.exp(x)), p)


def valid_elements(logits: np.ndarray, labels: np.ndarray) -> list[tuple[tuple[int, ...], float, bool]]:
    """Return the index, the logit and the binary target of each (anchor, class) element that is not ignored."""
    num_classes = logits.shape[-1]
    return [
        ((*row, k), float(logits[*row, k]), int(labels[row]) == k)
        for row in np.ndindex(labels.shape)
        if labels[row] != IGNORED
        for k in range(num_classes)
    ]


def binary_sum(logits, labels, num_fg, element) -> Expected:
    """Return the sum of element(logit, target) over the valid elements, divided by max(num_fg, 1)."""
    logits, labels = as_float64(logits), labels.numpy()
    parts, gradient = {True: 0.0, False: 0.0}, np.zeros(logits.shape)
    normaliser = max(float(num_fg), 1.0)
    for index, x, target in valid_elements(logits, labels):
        value, slope = element(x, target)
        parts[target] += value / normaliser
        gradient[index] = slope / normaliser
    return Expected((parts[True], parts[False]), gradient)


class CrossEntropy:
    def __init__(self, alpha: float | None):
        self.alpha = alpha

    def __call__(self, logits, labels, num_fg, level_sizes=None) -> Expected:
        def element(x, target):
            value, slope = cross_entropy_element(x, target)
            weight = 1.0 if self.alpha is None else self.alpha if target else 1 - self.alpha
            return weight * value, weight * slope

        return binary_sum(logits, labels, num_fg, element)


class Focal:
    def __init__(self, alpha: float | None, gamma: float):
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, logits, labels, num_fg, level_sizes=None) -> Expected:
        return binary_sum(logits, labels, num_fg, lambda x, t: focal_element(x, t, self.alpha, self.gamma))


class RunningDensity:
    """beta_i = N S_j^-power / sum_k S_k^(1 - power) for element i in bin j. The sum is over the bins of this step.

    S_j is the bias-corrected running count of bin j over the steps that have elements in the bin.
    """

    def __init__(self, bins: int, momentum: float, power: float):
        self.momentum, self.counts, self.steps, self.power = momentum, [0.0] * bins, [0] * bins, power

    def step(self, norms: list[float]) -> list[float]:
        bins, m = len(self.counts), self.momentum
        bin_of = [min(math.floor(g * bins), bins - 1) for g in norms]
        for j in set(bin_of):
            self.steps[j] += 1
            self.counts[j] = m * self.counts[j] + (1 - m) * bin_of.count(j)
        density = {j: self.counts[j] / (1 - m ** self.steps[j]) for j in set(bin_of)}
        total = sum(mean ** (1 - self.power) for mean in density.values())  # the number of non-empty bins for power 1
        return [len(norms) / density[j] ** self.power / total for j in bin_of]


class GHMC:
    """sum_i beta_i CE_i / N with g = |p - t|, over the batch, or separately for each level."""

    def __init__(self, bins: int, momentum: float, scope: str, power: float):
        self.density, self.scope = RunningDensity(bins, momentum, power), scope

    def __call__(self, logits, labels, num_fg, level_sizes=None) -> Expected:
        logits, labels = as_float64(logits), labels.numpy()
        if self.scope == "batch":
            return self.one_level(logits, labels)
        ends = np.cumsum(level_sizes)[:-1]
        levels = zip(np.split(logits, ends, axis=-2), np.split(labels, ends, axis=-1), strict=True)
        expected = [self.one_level(*level) for level in levels]
        parts = tuple(sum(part) for part in zip(*(e.parts for e in expected), strict=True))
        return Expected(parts, np.concatenate([e.gradient for e in expected], axis=-2))

    def one_level(self, logits, labels) -> Expected:
        elements = valid_elements(logits, labels)
        weights = self.density.step([abs(1 / (1 + math.exp(-x)) - target) for _, x, target in elements])
        parts, gradient = {True: 0.0, False: 0.0}, np.zeros(logits.shape)
        for (index, x, target), weight in zip(elements, weights, strict=True):
            value, slope = cross_entropy_element(x, target)
            parts[target] += weight * value / len(elements)
            gradient[index] = weight * slope / len(elements)
        return Expected((parts[True], parts[False]), gradient)


CLASSIFICATION = {"cross_entropy": CrossEntropy, "focal": Focal, "ghm_c": GHMC}


def foreground_elements(predicted, target, foreground) -> list[tuple[tuple[int, ...], float]]:
    """Return the index and predicted - target of each coordinate in the foreground rows."""
    return [
        ((*row, c), float(predicted[*row, c] - target[*row, c]))
        for row in np.ndindex(foreground.shape)
        if foreground[row]
        for c in range(4)
    ]


class SmoothL1:
    def __init__(self, beta: float):
        self.beta = beta

    def element(self, d: float) -> tuple[float, float]:
        if abs(d) < self.beta:
            return 0.5 * d * d / self.beta, d / self.beta
        return abs(d) - 0.5 * self.beta, math.copysign(1.0, d)

    def __call__(self, predicted, target, foreground, num_fg) -> Expected:
        predicted, target, foreground = as_float64(predicted), as_float64(target), foreground.numpy()
        total, gradient, normaliser = 0.0, np.zeros(predicted.shape), max(float(num_fg), 1.0)
        for index, d in foreground_elements(predicted, target, foreground):
            value, slope = self.element(d)
            total += value / normaliser
            gradient[index] = slope / normaliser
        return Expected((total,), gradient)


class L1(SmoothL1):
    def __init__(self):
        super().__init__(beta=0.0)

    def element(self, d: float) -> tuple[float, float]:
        return abs(d), math.copysign(1.0, d)


class GHMR:
    """sum_i beta_i ASL1_i / N, with ASL1 = sqrt(d^2 + mu^2) - mu and g = |d| / sqrt(d^2 + mu^2).

    N is 4 x the number of foreground rows.
    """

    def __init__(self, mu: float, bins: int, momentum: float, power: float):
        self.mu, self.density = mu, RunningDensity(bins, momentum, power)

    def __call__(self, predicted, target, foreground, num_fg) -> Expected:
        predicted, target, foreground = as_float64(predicted), as_float64(target), foreground.numpy()
        elements = foreground_elements(predicted, target, foreground)
        weights = self.density.step([abs(d) / math.sqrt(d * d + self.mu**2) for _, d in elements])
        total, gradient = 0.0, np.zeros(predicted.shape)
        for (index, d), weight in zip(elements, weights, strict=True):
            length = math.sqrt(d * d + self.mu**2)
            total += weight * (length - self.mu) / len(elements)
            gradient[index] = weight * d / length / len(elements)
        return Expected((total,), gradient)


BOX = {"smooth_l1": SmoothL1, "l1": L1, "ghm_r": GHMR}


def as_float64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def clear_of_edges(norms: torch.Tensor) -> torch.Tensor:
    """Return which gradient norms are not near the inner edges of bins, where rounding would select the bin."""
    scaled = norms.double() * EDGES
    return (scaled - scaled.round().clamp(1, EDGES - 1)).abs() > EDGE_MARGIN


def draw_logits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return random logits from both tails and the middle, which `dtype` represents exactly."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.cat([torch.randn(500, generator=generator) * 4, torch.tensor([20.0, -20.0])]).to(dtype)
    pool = pool[clear_of_edges(pool.double().sigmoid())]
    return pool[torch.randint(len(pool), shape, generator=generator)]


def draw_labels(shape: tuple[int, ...], num_classes: int, seed: int) -> torch.Tensor:
    """Return random labels -1 (ignored), 0..K-1 and K (background), with equal probabilities."""
    return torch.randint(-1, num_classes + 1, shape, generator=torch.Generator().manual_seed(seed + 1))


def draw_boxes(shape: tuple[int, ...], dtype: torch.dtype, seed: int, mu: float = 0.02):
    """Return random predictions (..., 4), targets (..., 4) and foreground flags (...).

    The predictions have `dtype`, and the targets at least fp32. A target differs from its prediction by 1e-3 to 3.
    """
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randn(shape, generator=generator).to(dtype)
    pool = 10 ** (torch.rand(500, generator=generator, dtype=torch.float64) * 3.5 - 3)
    pool = pool[clear_of_edges(pool / (pool**2 + mu**2).sqrt())]
    distance = pool[torch.randint(len(pool), shape, generator=generator)]
    sign = torch.randint(2, shape, generator=generator) * 2 - 1
    target = (predicted.double() + sign * distance).to(torch.promote_types(dtype, torch.float32))
    return predicted, target, torch.rand(shape[:-1], generator=generator) < 0.6


# Losses compute in float64 for float64 input, and in fp32 for other input. So values have the precision of fp32 sums of
# some hundred elements. The running counts of GHM are fp32 also for float64 input. A gradient is rounded to the dtype
# of the input, by at most eps / 2, and may be rounded again by the product with the upstream gradient.
VALUE_RTOL = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}
VALUE_ATOL = {torch.float64: 1e-14, torch.float32: 1e-7, torch.bfloat16: 1e-7, torch.float16: 1e-7}
GRADIENT_RTOL = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
GRADIENT_ATOL = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}
GHM_FLOAT64_RTOL = 1e-6


def assert_matches(
    loss: torch.Tensor, wrt: torch.Tensor, expected: Expected, *, upstream: float = 1.0, fp32_counts: bool = False
) -> None:
    """Assert that a loss and its gradient have the expected values.

    Args:
        loss: the loss.
        wrt: the input of the loss. The gradient has its dtype.
        expected: the value, and the gradient with respect to `wrt`.
        upstream: the gradient of the loss.
        fp32_counts: whether the loss has running counts in fp32.
    """
    dtype = wrt.dtype
    floor = GHM_FLOAT64_RTOL if fp32_counts else 0.0
    assert loss.shape == ()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(loss.item(), expected.value, rtol=max(VALUE_RTOL[dtype], floor), atol=VALUE_ATOL[dtype])
    (gradient,) = torch.autograd.grad(loss * upstream, wrt)
    assert gradient.dtype == dtype and gradient.shape == wrt.shape
    np.testing.assert_allclose(
        as_float64(gradient),
        upstream * expected.gradient,
        rtol=max(GRADIENT_RTOL[dtype], floor),
        atol=abs(upstream) * GRADIENT_ATOL[dtype],
    )
