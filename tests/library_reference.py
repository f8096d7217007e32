"""Reference implementations of the other losses, element by element in float64, from the formulas of the papers.

The code is as simple as `losses_reference`, and uses its focal element, tolerances and random inputs. The gradients
are derived by hand.
Sources: class-balanced weights, Cui et al. 2019; hard truncation, Su Jianlin; OHEM, Shrivastava et al. 2016 and (by
ratio) SSD, Liu et al. 2016; quality focal loss, Li et al. 2020; varifocal loss, Zhang et al. 2021; matchability- aware
loss, Huang et al. 2024; asymmetric loss, Ridnik et al. 2021; PolyLoss, Leng et al. 2022; equalized focal loss, Li et
al. 2022; rank & sort loss, Oksuz et al. 2021; balanced L1, Pang et al. 2019.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from losses_reference import (
    GRADIENT_ATOL,
    GRADIENT_RTOL,
    IGNORED,
    VALUE_ATOL,
    VALUE_RTOL,
    Expected,
    SmoothL1,
    as_float64,
    draw_logits,
    focal_element,
)


@dataclass(frozen=True)
class Element:
    """An element of the logits, in a row that is not ignored: the binary classifier of a class.

    Attributes:
        index: the index into the logits.
        x: the logit.
        target: whether the label of the row is the class of the element.
        label: the label of the row.
        quality: the quality of the row.
    """

    index: tuple[int, ...]
    x: float
    target: bool
    label: int
    quality: float

    @property
    def column(self) -> int:
        return self.index[-1]


def elements(logits, labels, quality=None) -> list[Element]:
    logits, labels = as_float64(logits), labels.numpy()
    quality = np.ones(labels.shape) if quality is None else as_float64(quality)
    return [
        Element((*row, k), float(logits[*row, k]), bool(labels[row] == k), int(labels[row]), float(quality[row]))
        for row in np.ndindex(labels.shape)
        if labels[row] != IGNORED
        for k in range(logits.shape[-1])
    ]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


class ElementWise:
    """The sum of `element` over all elements, divided by max(num_fg, 1)."""

    def element(self, e: Element) -> tuple[float, float]:
        """Return the value and its derivative with respect to the logit."""
        raise NotImplementedError

    def __call__(self, logits, labels, num_fg, quality=None) -> Expected:
        parts, gradient = {True: 0.0, False: 0.0}, np.zeros(tuple(logits.shape))
        normaliser = max(float(num_fg), 1.0)
        for e in elements(logits, labels, quality):
            value, slope = self.element(e)
            parts[e.target] += value / normaliser
            gradient[e.index] = slope / normaliser
        return Expected((parts[True], parts[False]), gradient)


def class_weight_list(class_weights, class_counts, beta) -> list[float]:
    """Return the weights of the rows with labels 0..K-1.

    A list is not changed. The weights of a rule are scaled to a mean of 1 over the classes that occur.
    """
    if class_weights is None or isinstance(class_weights, list):
        return class_weights or []
    counts = [max(n, 1) for n in class_counts]
    if class_weights == "inverse_frequency":
        weights = [1 / n for n in counts]
    else:
        weights = [(1 - beta) / (1 - beta**n) for n in counts]
    occurring = [w for w, n in zip(weights, class_counts, strict=True) if n > 0]
    return [w * len(occurring) / sum(occurring) for w in weights]


class Focal(ElementWise):
    """w_y FL(alpha_k, gamma). With `rescale`, a constant factor gives the loss the value that it has with gamma = 0."""

    def __init__(self, alpha=0.25, gamma=2.0, rescale=False, class_weights=None, class_counts=None, beta=0.9999):
        self.alpha, self.gamma, self.rescale = alpha, gamma, rescale
        self.weights = class_weight_list(class_weights, class_counts, beta)

    def element(self, e):
        alpha = self.alpha[e.column] if isinstance(self.alpha, list) else self.alpha
        weight = self.weights[e.label] if e.label < len(self.weights) else 1.0  # background rows have weight 1
        value, slope = focal_element(e.x, e.target, alpha, self.gamma)
        return weight * value, weight * slope

    def __call__(self, logits, labels, num_fg, quality=None):
        focal = super().__call__(logits, labels, num_fg, quality)
        if not self.rescale or focal.value == 0:
            return focal
        plain = Focal(self.alpha, gamma=0.0)
        plain.weights = self.weights
        factor = plain(logits, labels, num_fg).value / focal.value
        return Expected(tuple(factor * part for part in focal.parts), factor * focal.gradient)


class CrossEntropy(Focal):
    def __init__(self, alpha=None, **class_weighting):
        super().__init__(alpha, gamma=0.0, **class_weighting)


class MarginCrossEntropy(ElementWise):
    """alpha_t CE where p_t <= m, and 0 elsewhere."""

    def __init__(self, margin=0.6, alpha=None):
        self.margin, self.alpha = margin, alpha

    def element(self, e):
        p_t = sigmoid(e.x if e.target else -e.x)
        return focal_element(e.x, e.target, self.alpha, 0.0) if p_t <= self.margin else (0.0, 0.0)


class OHEM:
    """The focal loss of the rows with the highest losses in each image.

    In the mode ratio, they are background rows in a ratio to the foreground rows. In the mode top_k, they are the top k
    of all rows.
    """

    def __init__(self, mode="ratio", ratio=3.0, top_k=256, alpha=None, gamma=0.0):
        self.mode, self.ratio, self.top_k, self.focal = mode, ratio, top_k, Focal(alpha, gamma)

    def __call__(self, logits, labels, num_fg, quality=None) -> Expected:
        losses = np.zeros(tuple(labels.shape))
        for e in elements(logits, labels):
            losses[e.index[:-1]] += self.focal.element(e)[0]
        selected, num_classes = labels.clone(), logits.shape[-1]
        for image in np.ndindex(labels.shape[:-1]):
            valid = [row for row in range(labels.shape[-1]) if labels[image][row] != IGNORED]
            background = [row for row in valid if labels[image][row] == num_classes]
            candidates, count = valid, self.top_k
            if self.mode == "ratio":
                candidates, count = background, math.floor(self.ratio * (len(valid) - len(background)))
            for row in self.all_but_hardest(candidates, losses[image], count):
                selected[image][row] = IGNORED
        return self.focal(logits, selected, num_fg)

    @staticmethod
    def all_but_hardest(rows: list[int], losses: np.ndarray, count: int) -> list[int]:
        rows = sorted(rows, key=lambda row: -losses[row])
        if 0 < count < len(rows):  # rounding must not select the rows, unless their losses are almost 0
            assert losses[rows[count - 1]] > (1 + 1e-4) * losses[rows[count]] or losses[rows[count - 1]] < 1e-30
        return rows[count:]


class QualityFocal(ElementWise):
    """|y - p|^beta BCE(p, y), with y = q where t = 1 and y = 0 elsewhere."""

    def __init__(self, beta=2.0):
        self.beta = beta

    def element(self, e):
        y, p, not_p = e.quality if e.target else 0.0, sigmoid(e.x), sigmoid(-e.x)
        d = p * (1 - y) - y * not_p  # = p - y, exact for y = 0 and y = 1
        cross_entropy = -y * log_sigmoid(e.x) - (1 - y) * log_sigmoid(-e.x)
        modulator = abs(d) ** self.beta
        slope = self.beta * abs(d) ** (self.beta - 1) * math.copysign(p * not_p, d) * cross_entropy + modulator * d
        return modulator * cross_entropy, slope


class Varifocal(ElementWise):
    """q BCE(p, q) where t = 1 and q > 0, and -alpha p^gamma log(1 - p) elsewhere."""

    def __init__(self, alpha=0.75, gamma=2.0):
        self.alpha, self.gamma = alpha, gamma

    def element(self, e):
        p, not_p, log_p, log_not_p = sigmoid(e.x), sigmoid(-e.x), log_sigmoid(e.x), log_sigmoid(-e.x)
        if e.target and e.quality > 0:
            q = e.quality
            return -q * (q * log_p + (1 - q) * log_not_p), q * (p * (1 - q) - q * not_p)
        weight = self.alpha * p**self.gamma
        return -weight * log_not_p, weight * (p - self.gamma * not_p * log_not_p)


class Mal(ElementWise):
    """BCE(p, q^gamma) where t = 1, and -p^gamma log(1 - p) elsewhere."""

    def __init__(self, gamma=1.5):
        self.gamma = gamma

    def element(self, e):
        p, not_p, log_p, log_not_p = sigmoid(e.x), sigmoid(-e.x), log_sigmoid(e.x), log_sigmoid(-e.x)
        if e.target:
            y = e.quality**self.gamma
            return -(y * log_p + (1 - y) * log_not_p), p * (1 - y) - y * not_p
        weight = p**self.gamma
        return -weight * log_not_p, weight * (p - self.gamma * not_p * log_not_p)


class Asymmetric(ElementWise):
    """-(1 - p)^gamma_pos log p where t = 1, and -p_m^gamma_neg log(1 - p_m), p_m = max(p - shift, 0), elsewhere."""

    def __init__(self, gamma_pos=0.0, gamma_neg=4.0, shift=0.05):
        self.gamma_pos, self.gamma_neg, self.shift = gamma_pos, gamma_neg, shift

    def element(self, e):
        p, not_p, g = sigmoid(e.x), sigmoid(-e.x), self.gamma_neg
        if e.target:
            return focal_element(e.x, True, None, self.gamma_pos)
        if p <= self.shift:
            return 0.0, 0.0
        p_m, not_p_m = p - self.shift, not_p + self.shift
        slope_by_p = -g * p_m ** (g - 1) * math.log(not_p_m) + p_m**g / not_p_m
        return -(p_m**g) * math.log(not_p_m), slope_by_p * p * not_p


class PolyFocal(ElementWise):
    """FL + alpha_t epsilon (1 - p_t)^(gamma + 1)."""

    def __init__(self, alpha=0.25, gamma=2.0, epsilon=-1.0):
        self.alpha, self.gamma, self.epsilon = alpha, gamma, epsilon

    def element(self, e):
        value, slope = focal_element(e.x, e.target, self.alpha, self.gamma)
        y = 1 if e.target else -1
        weight = 1.0 if self.alpha is None else self.alpha if e.target else 1 - self.alpha
        extra = weight * self.epsilon * sigmoid(-y * e.x) ** (self.gamma + 1)
        return value + extra, slope - y * (self.gamma + 1) * extra * sigmoid(y * e.x)


class EqualizedFocal(ElementWise):
    """gamma_k / gamma FL(gamma_k) with gamma_k = gamma + scale (1 - g_k). The earlier steps give g_k."""

    def __init__(self, num_classes, alpha=0.25, gamma=2.0, scale=8.0):
        self.alpha, self.gamma, self.scale = alpha, gamma, scale
        self.sums = {True: [0.0] * num_classes, False: [0.0] * num_classes}  # sums of |slope|, by target and class

    def balance(self, k: int) -> float:
        positive, negative = self.sums[True][k], self.sums[False][k]
        return min(positive / negative, 1.0) if negative > 0 else 1.0

    def element(self, e):
        gamma = self.gamma + self.scale * (1 - self.balance(e.column))
        value, slope = focal_element(e.x, e.target, self.alpha, gamma)
        return gamma / self.gamma * value, gamma / self.gamma * slope

    def learn(self, logits, labels) -> None:
        """Add the slopes of a training step to the sums."""
        slopes = [(e, abs(self.element(e)[1])) for e in elements(logits, labels)]  # all slopes use the same g
        for e, slope in slopes:
            self.sums[e.target][e.column] += slope


class RankSort:
    """Rank & sort loss (Oksuz et al. 2021, equations 7 and 8, with the identity update).

    H(x_ij) measures how far j ranks above i. The parts are the mean sorting error (current - target) and the mean
    ranking error. The identity update distributes the error of foreground i over the elements that rank above i.
    """

    def __init__(self, delta=0.5):
        self.delta = delta

    def __call__(self, logits, labels, num_fg, quality=None) -> Expected:
        valid = elements(logits, labels, quality)
        foreground, background = [e for e in valid if e.target], [e for e in valid if not e.target]
        gradient = {e.index: 0.0 for e in valid}
        ranking = sorting = 0.0
        for i in foreground:
            above = {j.index: min(max((j.x - i.x) / (2 * self.delta) + 0.5, 0.0), 1.0) for j in valid}
            rank_fg = sum(above[j.index] for j in foreground)
            false_positives = sum(above[j.index] for j in background)
            ranking_error = false_positives / (rank_fg + false_positives)
            better = [j for j in foreground if j.quality >= i.quality]
            worse = [j for j in foreground if j.quality < i.quality]
            current = sum(above[j.index] * (1 - j.quality) for j in foreground) / rank_fg
            target = sum(above[j.index] * (1 - j.quality) for j in better) / sum(above[j.index] for j in better)
            ranking, sorting = ranking + ranking_error, sorting + current - target
            for error, causes in ((ranking_error, background), (current - target, worse)):
                total = sum(above[j.index] for j in causes)
                for j in causes if total > 0 else ():
                    gradient[j.index] += error * above[j.index] / total / len(foreground)
                    gradient[i.index] -= error * above[j.index] / total / len(foreground)
        full = np.zeros(tuple(logits.shape))
        for index, slope in gradient.items():
            full[index] = slope
        return Expected((sorting / max(len(foreground), 1), ranking / max(len(foreground), 1)), full)


LIBRARY = {
    "cross_entropy": CrossEntropy,
    "focal": Focal,
    "margin_cross_entropy": MarginCrossEntropy,
    "ohem": OHEM,
    "quality_focal": QualityFocal,
    "varifocal": Varifocal,
    "mal": Mal,
    "asymmetric": Asymmetric,
    "poly_focal": PolyFocal,
    "equalized_focal": EqualizedFocal,
    "rank_sort": RankSort,
}


class BalancedL1(SmoothL1):
    """alpha / b (b |d| + 1) ln(b |d| + 1) - alpha |d| where |d| < 1, and gamma |d| + C elsewhere.

    b = exp(gamma / alpha) - 1.
    """

    def __init__(self, alpha=0.5, gamma=1.5):
        self.alpha, self.gamma = alpha, gamma

    def element(self, d):
        a, b = self.alpha, math.exp(self.gamma / self.alpha) - 1
        if abs(d) < 1:
            growth = b * abs(d) + 1
            return a / b * growth * math.log(growth) - a * abs(d), math.copysign(a * math.log(growth), d)
        at_one = a / b * (b + 1) * math.log(b + 1) - a
        return at_one + self.gamma * (abs(d) - 1), math.copysign(self.gamma, d)


def draw_inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int):
    """Return random logits (..., K), labels (...) and quality (...).

    Of ten labels, two are ignored and three are foreground. The quality is a multiple of 1/8, from 1/8 to 1.
    """
    generator = torch.Generator().manual_seed(seed)
    kind = torch.rand(shape[:-1], generator=generator)
    labels = torch.randint(shape[-1], shape[:-1], generator=generator)
    labels = labels.where(kind < 0.3, shape[-1]).where(kind < 0.8, IGNORED)
    quality = torch.randint(1, 9, shape[:-1], generator=generator) / 8
    return draw_logits(shape, dtype, seed), labels, quality.to(torch.promote_types(dtype, torch.float32))


def assert_agrees(
    loss: torch.Tensor, logits: torch.Tensor, expected: Expected, upstream: float = -2.5, rtol: float = 0.0
) -> None:
    """Assert that a loss and its gradient have the expected values.

    Args:
        loss: the loss.
        logits: the logits of the loss.
        expected: the value, and the gradient with respect to the logits.
        upstream: the gradient of the loss.
        rtol: the relative tolerance, if it is larger than the tolerance of the dtype.
    """
    dtype = logits.dtype
    assert loss.shape == () and loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(loss.item(), expected.value, rtol=max(rtol, VALUE_RTOL[dtype]), atol=VALUE_ATOL[dtype])
    (gradient,) = torch.autograd.grad(loss * upstream, logits, retain_graph=True)
    assert gradient.dtype == dtype and gradient.shape == logits.shape
    np.testing.assert_allclose(
        as_float64(gradient),
        upstream * expected.gradient,
        rtol=max(rtol, GRADIENT_RTOL[dtype]),
        atol=abs(upstream) * GRADIENT_ATOL[dtype],
    )
