"""The published procedure of GHM-C and GHM-R in float64, and the variants that differ from it in a single rule.

The code has loops and gradients derived by hand, and shares nothing with `detector`. Source: Li, Liu, Wang 2019,
"Gradient Harmonized Single-stage Detector", and the settings of its published recipe.

The published procedure calls the loss once for each pyramid level. In a call, `total` elements are valid and M bins
are not empty. For each of these bins, acc_j <- m acc_j + (1 - m) R_j, where R_j is the count of the bin. The weight of
an element of the bin is total / acc_j / M. The call returns the sum of weight x loss over the valid elements, divided
by `total`. So `total` cancels. All levels share acc. The losses of the levels are added.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

LAST_EDGE = 1 + 1e-6  # so that a norm of 1 is in the last bin


@dataclass(frozen=True)
class Rules:
    """The rules by which GHM counts. The defaults are the published rules.

    Attributes:
        by_level: each pyramid level is a call. Otherwise all levels are a single call.
        shares_counts: all levels have the same running counts. Otherwise each level has separate counts.
        averages_levels: the losses of the levels are averaged, not added.
        corrects_bias: acc_j is divided by 1 - m^t after t changes.
        decays_empty_bins: acc_j <- m acc_j also for the empty bins.
        num_processes: the images are divided among processes with separate counts, and the losses are averaged.
        rounds_norms: the norms are rounded to bf16. A norm of 1 is then in no bin.
    """

    by_level: bool = True
    shares_counts: bool = True
    averages_levels: bool = False
    corrects_bias: bool = False
    decays_empty_bins: bool = False
    num_processes: int = 1
    rounds_norms: bool = False


PUBLISHED = Rules()
OURS_BY_LEVEL = replace(PUBLISHED, corrects_bias=True)
OURS = replace(OURS_BY_LEVEL, by_level=False)  # scope: batch


@dataclass(frozen=True)
class Harmonized:
    """The result of a step.

    Attributes:
        factors: the factor of the loss of each element in the loss of the step, 0 for an ignored element.
        loss: the loss of the step.
        gradient: the derivative of the loss by each logit or offset.
    """

    factors: np.ndarray
    loss: float
    gradient: np.ndarray


class RunningCounts:
    """The counts acc of the bins."""

    def __init__(self, bins: int, momentum: float, rules: Rules):
        self.bins, self.momentum, self.rules = bins, momentum, rules
        self.acc = [0.0] * bins
        self.num_changes = [0] * bins

    def factors(self, norms: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
        """Return weight / total of each element of a call. The arrays have the same shape."""
        edges = [j / self.bins for j in range(self.bins)] + [1.0 if self.rules.rounds_norms else LAST_EDGE]
        if self.rules.rounds_norms:
            norms = torch.from_numpy(norms).bfloat16().double().numpy()
        total, num_used = max(int(is_valid.sum()), 1), 0
        weights = np.zeros(norms.shape)
        for j in range(self.bins):
            in_bin = (norms >= edges[j]) & (norms < edges[j + 1]) & is_valid
            count = int(in_bin.sum())
            if count > 0 or self.rules.decays_empty_bins:
                self.acc[j] = self.momentum * self.acc[j] + (1 - self.momentum) * count
                self.num_changes[j] += 1
            if count > 0:
                num_used += 1
                correction = 1 - self.momentum ** self.num_changes[j] if self.rules.corrects_bias else 1.0
                weights[in_bin] = total / (self.acc[j] / correction)
        return weights / max(num_used, 1) / total


class _Published:
    """The calls of a step, by process and by level."""

    def __init__(self, bins: int, momentum: float, rules: Rules):
        self.rules = rules
        self._arguments = bins, momentum, rules
        self._counts: dict[tuple[int, int], RunningCounts] = {}

    def factors(self, norms: np.ndarray, is_valid: np.ndarray, level_sizes: tuple[int, ...]) -> np.ndarray:
        """Return the factor of each element (images, anchors, numbers) in the loss of the step."""
        factors = np.zeros(norms.shape)
        for process, images in enumerate(np.array_split(np.arange(len(norms)), self.rules.num_processes)):
            for level, anchors in self._levels(level_sizes):
                key = process, 0 if self.rules.shares_counts else level
                counts = self._counts.setdefault(key, RunningCounts(*self._arguments))
                part = np.ix_(images, anchors)
                factors[part] = counts.factors(norms[part], is_valid[part])
        num_losses = self.rules.num_processes * (len(level_sizes) if self.rules.averages_levels else 1)
        return factors / num_losses

    def _levels(self, sizes: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
        if not self.rules.by_level:
            sizes = (sum(sizes),)
        yield from enumerate(np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]))


class PublishedGHMC(_Published):
    """GHM-C: the loss of an element is the cross entropy, and its gradient norm is |p - t|."""

    def __init__(self, bins: int = 30, momentum: float = 0.75, rules: Rules = PUBLISHED):
        super().__init__(bins, momentum, rules)

    def __call__(self, logits: np.ndarray, labels: np.ndarray, level_sizes: tuple[int, ...]) -> Harmonized:
        """Return the result of a step. `logits` is (images, anchors, K), and `labels` (images, anchors)."""
        targets = one_hot(labels, logits.shape[-1])
        p = 1 / (1 + np.exp(-logits))
        is_valid = np.broadcast_to((labels >= 0)[..., None], logits.shape)
        factors = self.factors(np.abs(p - targets), is_valid, level_sizes)
        return Harmonized(factors, float((factors * cross_entropy(logits, targets)).sum()), factors * (p - targets))


class PublishedGHMR(_Published):
    """GHM-R: the loss of an offset is ASL1(d) = sqrt(d^2 + mu^2) - mu, and its gradient norm is |d| / sqrt(d^2 + mu^2).

    d is predicted - target. The offsets of foreground anchors are valid.
    """

    def __init__(self, mu: float = 0.02, bins: int = 10, momentum: float = 0.7, rules: Rules = PUBLISHED):
        super().__init__(bins, momentum, rules)
        self.mu = mu

    def __call__(
        self, predicted: np.ndarray, target: np.ndarray, foreground: np.ndarray, level_sizes: tuple[int, ...]
    ) -> Harmonized:
        """Return the result of a step. The offsets are (images, anchors, 4), and `foreground` is (images, anchors)."""
        is_valid = np.broadcast_to(foreground[..., None], predicted.shape)
        difference = np.where(is_valid, predicted - target, 0)
        length = np.sqrt(difference**2 + self.mu**2)
        factors = self.factors(np.abs(difference) / length, is_valid, level_sizes)
        return Harmonized(factors, float((factors * (length - self.mu)).sum()), factors * difference / length)


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the binary targets (..., K) of labels (...)."""
    return (labels[..., None] == np.arange(num_classes)).astype(float)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the cross entropy of each element."""
    return np.logaddexp(0, np.where(targets == 1, -logits, logits))


@dataclass(frozen=True)
class Step:
    """The inputs of GHM-C and GHM-R in a step, in the shapes of a training. All are on the CPU."""

    logits: torch.Tensor
    labels: torch.Tensor
    predicted: torch.Tensor
    target: torch.Tensor
    foreground: torch.Tensor
    level_sizes: tuple[int, ...]

    def classification(self) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        """Return the arguments of `PublishedGHMC`."""
        return _wide(self.logits), self.labels.numpy(), self.level_sizes

    def boxes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
        """Return the arguments of `PublishedGHMR`."""
        return _wide(self.predicted), _wide(self.target), self.foreground.numpy(), self.level_sizes


def _wide(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


LEVELS = (1024, 256, 64, 16, 4)  # anchors, with the ratios of P3 to P7
NUM_CLASSES = 5
FOREGROUND, WRONG, IGNORED = 0.02, 0.05, 0.03  # fractions of the anchors; of the foreground; of the anchors


def drawn_steps(num_steps: int, num_images: int = 2, level_sizes: tuple[int, ...] = LEVELS) -> Iterator[Step]:
    """Yield random steps in float64. At first all scores are near 0.01, and at the end most elements are easy.

    A few foreground anchors have a wrong label, so their scores stay low. The offsets become exact.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = num_images, sum(level_sizes)
    for step in range(num_steps):
        progress = step / max(num_steps - 1, 1)
        kind = torch.rand(shape, generator=generator)
        labels = torch.randint(NUM_CLASSES, shape, generator=generator).where(kind < FOREGROUND, NUM_CLASSES)
        labels = labels.masked_fill(kind > 1 - IGNORED, -1)
        foreground = (labels >= 0) & (labels < NUM_CLASSES)
        logits = -4.6 - 2 * progress + (0.3 + 2 * progress) * normal(*shape, NUM_CLASSES)
        is_learned = foreground & (kind > WRONG * FOREGROUND)
        targets = torch.from_numpy(one_hot(labels.numpy(), NUM_CLASSES)) * is_learned[..., None]
        target = normal(*shape, 4)
        error = (1 - 0.95 * progress) * normal(*shape, 4) * 0.3
        yield Step(logits + 7 * progress * targets, labels, target + error, target, foreground, level_sizes)
