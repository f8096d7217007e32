"""Curves over the threshold of a score, and the numbers that summarize them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Curve:
    """The numbers of detected rows with each distinct score as the threshold.

    thresholds: (T,) the distinct scores in descending order.
    true_positives: (T,) the number of positive rows with at least this score.
    false_positives: (T,) the number of background rows with at least this score.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray

    def roc_auc(self) -> float:
        """Return the probability that a positive row has a higher score than a background row. A tie counts half."""
        tp, fp = self.true_positives, self.false_positives
        above = tp - np.diff(tp, prepend=0) / 2  # the positives above each score, and half of the positives at it
        return float((np.diff(fp, prepend=0) * above).sum() / (tp[-1] * fp[-1]))

    def average_precision(self) -> float:
        """Return sum_t (R_t - R_(t-1)) P_t over the thresholds, without interpolation (scikit-learn's definition)."""
        tp, fp = self.true_positives, self.false_positives
        return float((np.diff(tp, prepend=0) * tp / (tp + fp)).sum() / tp[-1])

    def best_threshold(self) -> float:
        """Return the threshold with the highest F1. Among equal F1 the highest threshold is returned."""
        tp, fp = self.true_positives, self.false_positives
        return float(self.thresholds[np.argmax(2 * tp / (tp + fp + tp[-1]))])


def make_curve(scores: np.ndarray, is_positive: np.ndarray) -> Curve:
    """Return the curve of scored rows. Positive and background rows both have to occur.

    Args:
        scores: (N,) the score of each row.
        is_positive: (N,) bool.
    """
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # the last row of each run of equal scores
    num_positive = is_positive[order].cumsum()[last]
    return Curve(scores[last], num_positive, last + 1 - num_positive)
