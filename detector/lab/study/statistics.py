"""Means with intervals, and paired tests, for results of a few random seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """The mean of n values and its Student's t-interval. low and high are NaN for fewer than two values."""

    n: int
    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the interval mean +- t(0.975, n - 1) s / sqrt(n). s is the standard deviation with divisor n - 1."""
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    if n < 2:
        return Interval(n, mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(n, mean, mean - half, mean + half)


def paired_p_value(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the two-sided p-value of the paired t-test.

    The value is NaN for fewer than two pairs. If all differences are equal, it is 1 where they are 0, else 0.

    Args:
        values: (n,) the values of the first group.
        others: (n,) the paired values of the second group.
    """
    difference = np.subtract(values, others)
    if len(difference) < 2:
        return math.nan
    if np.ptp(difference) == 0:  # all differences are equal, so the statistic is 0 / 0 or infinite
        return 1.0 if difference[0] == 0 else 0.0
    return float(stats.ttest_rel(values, others).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for multiple tests (Holm 1979).

    The probability of any false positive among the tests is at most the significance level. NaN stays NaN and does
    not count as a test.
    """
    known = [i for i in np.argsort(p_values) if not math.isnan(p_values[i])]
    adjusted, highest = list(p_values), 0.0
    for rank, i in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
