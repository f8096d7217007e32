"""Curves over the threshold of a score, and the numbers that sum them up."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Curve:
    """What is found at each distinct score as the threshold, from the highest to the lowest: (T,) arrays."""

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray

    def roc_auc(self) -> float:
        """The chance that a positive scores above a background row, a tie counting half."""
        tp, fp = self.true_positives, self.false_positives
        above = tp - np.diff(tp, prepend=0) / 2  # positives above each score, and half of those at it
        return float((np.diff(fp, prepend=0) * above).sum() / (tp[-1] * fp[-1]))

    def average_precision(self) -> float:
        """sum over thresholds of (R_t - R_(t-1)) P_t, without interpolation (scikit-learn's definition)."""
        tp, fp = self.true_positives, self.false_positives
        return float((np.diff(tp, prepend=0) * tp / (tp + fp)).sum() / tp[-1])

    def best_threshold(self) -> float:
        """The one of highest F1, of several the highest."""
        tp, fp = self.true_positives, self.false_positives
        return float(self.thresholds[np.argmax(2 * tp / (tp + fp + tp[-1]))])


def make_curve(scores: np.ndarray, positive: np.ndarray) -> Curve:
    """scores (N,), positive (N,) bool; both classes have to occur."""
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # of each run of equal scores
    found = positive[order].cumsum()[last]
    return Curve(scores[last], found, last + 1 - found)
