"""Means with intervals, and paired tests: what a few seeds can say, and what they cannot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and Student's t-interval around it; low and high are NaN for a single value."""

    n: int
    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval:
    """mean +- t(0.975, n - 1) s / sqrt(n), s the standard deviation with n - 1."""
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    if n < 2:
        return Interval(n, mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(n, mean, mean - half, mean + half)


def paired_p_value(values: Sequence[float], others: Sequence[float]) -> float:
    """Two-sided p of the paired t-test; 1 where all differences are 0, NaN for fewer than two pairs."""
    difference = np.subtract(values, others)
    if len(difference) < 2:
        return math.nan
    if np.ptp(difference) == 0:  # no spread: the statistic is 0 / 0 or infinite
        return 1.0 if difference[0] == 0 else 0.0
    return float(stats.ttest_rel(values, others).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): the chance of any false alarm among them stays below the level.
    NaN stays NaN and does not count."""
    known = [i for i in np.argsort(p_values) if not math.isnan(p_values[i])]
    adjusted, worst = list(p_values), 0.0
    for rank, i in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted
