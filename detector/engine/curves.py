"""The curves of a run, curves.png: losses, validation AP, the foreground's share of the gradient, learning rate."""

import csv
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detector.core.files import replacing
from detector.core.plotting import optional, plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)
NUM_WINDOWS = 50  # in a smoothed curve


def save_curves(folder: Path) -> None:
    """Draw the tables of the logger `csv` as curves.png.

    A warning is logged, and no picture is written, if the run has no such tables or drawing fails.
    """
    if not (folder / "metrics.csv").exists():
        log.warning("%s is not drawn: the run has no metrics.csv; add csv to train.loggers", folder / "curves.png")
        return
    with optional(f"{folder / 'curves.png'}"), plotting():
        _draw(folder)


def _draw(folder: Path) -> None:
    steps, evaluations = _columns(folder / "metrics.csv"), _columns(folder / "evaluations.csv")
    from matplotlib import pyplot  # its import is slow

    figure, grid = pyplot.subplots(2, 2, sharex=True, figsize=(11, 6.5), layout="constrained")
    (losses, scores), (share, rate) = grid
    names = list(steps)
    for name in names[names.index("loss") : names.index("fg_gradient_share")]:  # the sum, its terms and their parts
        _plot(losses, steps["step"], steps[name], name)
    losses.set(title="Training loss", yscale="log")
    losses.legend(ncols=2, fontsize="small")
    for name in ("AP", "AP50"):
        scores.plot(evaluations.get("step", []), evaluations.get(name, []), marker="o", label=name)
    scores.set(title="Validation", ylim=(0, 1))
    scores.legend(fontsize="small")
    _plot(share, steps["step"], steps["fg_gradient_share"], "")
    share.set(title="Foreground's share of the gradient", ylim=(0, 1), xlabel="step")
    rate.plot(steps["step"], steps["lr"])
    rate.set(title="Learning rate", ylim=(0, None), xlabel="step")
    for axes in (losses, scores, share, rate):
        axes.grid(alpha=0.3)
    with replacing(folder / "curves.png") as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)


def _columns(file: Path) -> dict[str, np.ndarray]:
    """Return the columns of a table of numbers; an empty cell is NaN. A missing file has no columns."""
    if not file.exists():
        return {}
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in (rows[0] if rows else ())}


def _plot(axes: "Axes", steps: np.ndarray, values: np.ndarray, label: str) -> None:
    """Plot a noisy curve: the values in a pale color, and above them their mean over windows of steps."""
    (raw,) = axes.plot(steps, values, linewidth=0.7, alpha=0.3)
    axes.plot(*(smooth(column, NUM_WINDOWS) for column in (steps, values)), color=raw.get_color(), label=label)


def smooth(values: np.ndarray, num_windows: int) -> np.ndarray:
    """Return the mean of each of `num_windows` consecutive windows of equal length; all values if they are fewer."""
    return np.array([window.mean() for window in np.array_split(values, min(num_windows, len(values)))])
