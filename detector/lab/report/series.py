"""The values of a column of metrics.csv: smoothed, thinned, at the start and at the end."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SMOOTHED_OVER = 1 / 10  # of the readings
ENDS = 1 / 10  # of the readings make the start, and the end
MAX_POINTS = 400  # of a curve on the page
SETTLED = 0.05  # of the range of the curve


@dataclass(frozen=True, slots=True)
class Series:
    """The finite readings of a quantity: steps (N,) and values (N,), in the order of the steps."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def start(self) -> float:
        """The mean of the first tenth of the readings."""
        return float(self.values[: self._num_ends].mean())

    @property
    def end(self) -> float:
        """The mean of the last tenth of the readings."""
        return float(self.values[-self._num_ends :].mean())

    @property
    def _num_ends(self) -> int:
        return max(1, round(ENDS * len(self)))

    def smoothed(self) -> "Series":
        """Return the moving averages of the values."""
        return Series(self.steps, smooth(self.values))

    def thinned(self) -> "Series":
        """Return at most MAX_POINTS readings, evenly spread, with the first and the last."""
        if len(self) <= MAX_POINTS:
            return self
        chosen = np.linspace(0, len(self) - 1, MAX_POINTS).round().astype(int)
        return Series(self.steps[chosen], self.values[chosen])

    def settled_at(self) -> float:
        """Return the first step after which the smoothed curve stays within 5% of its range from its last value."""
        values = smooth(self.values)
        far = np.flatnonzero(np.abs(values - values[-1]) > SETTLED * np.ptp(values))
        return float(self.steps[far[-1] + 1]) if len(far) else float(self.steps[0])


def read_series(rows: Sequence[dict], name: str) -> Series:
    """Return the finite values of the column `name`; the rows without a value are left out."""
    readings = np.array([(row["step"], row[name]) for row in rows if name in row], dtype=float).reshape(-1, 2)
    readings = readings[np.isfinite(readings).all(axis=1)]
    return Series(readings[:, 0], readings[:, 1])


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the centered moving averages of (N,) values over a tenth of them, at least 3.

    The window is symmetric at the start, where curves are steep. At the end it has the values that exist.
    """
    window = max(3, round(SMOOTHED_OVER * len(values)) // 2 * 2 + 1)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    position = np.arange(len(values))
    half = np.minimum(window // 2, position)
    low, high = position - half, np.minimum(position + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
