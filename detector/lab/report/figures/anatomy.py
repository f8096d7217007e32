"""Figures of an anatomy: error types, confusion, thresholds, calibration."""

import math

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from detector.core.plotting import plain
from detector.evaluation.anatomy_result import Anatomy
from detector.lab.report.figures import anatomy_readings as readings
from detector.lab.report.figures.drawing import BLUE, GRAY, GREEN, ORANGE, Figure, draw

ERRORS = {  # TIDE's types
    "Bkg": "on background",
    "Miss": "missed object",
    "Loc": "inaccurate box",
    "Cls": "wrong class",
    "Both": "class and box",
    "Dupe": "duplicate",
    "FalsePos": "all false positives",
    "FalseNeg": "all missed objects",
}
MAX_CLASSES = 8  # in a legend
MAX_COUNTS = 8  # classes of a confusion matrix that shows numbers
MAX_NARROW = 20  # classes of a confusion matrix in one column of the page
LABEL_POINTS = 450  # of all class names along a side of the confusion matrix


def draw_anatomy(anatomy: Anatomy) -> list[Figure]:
    """Draw an anatomy: error types, confusion, thresholds, calibration and imbalance."""
    return [
        _errors(anatomy),
        _confusion(anatomy),
        _thresholds(anatomy),
        _recall(anatomy),
        _calibration(anatomy),
        *([_imbalance(anatomy)] if anatomy.by_imbalance else []),
    ]


def _errors(anatomy: Anatomy) -> Figure:
    def plot(axes) -> None:
        types = [name for name in anatomy.tide if name in ERRORS]
        types = sorted(types, key=lambda name: (name.startswith("False"), -anatomy.tide[name]), reverse=True)
        colors = [GRAY if name.startswith("False") else ORANGE for name in types]
        axes.barh([ERRORS[name] for name in types], [anatomy.tide[name] for name in types], color=colors, height=0.65)
        axes.set(
            xlabel="AP50 that the repair of these errors adds",
            xlim=(0, 1.05 * max(anatomy.tide[name] for name in types) or 1),
        )
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", visible=False)

    return draw("Errors by their cost in AP50", readings.read_errors(anatomy), plot)


def _confusion(anatomy: Anatomy) -> Figure:
    names, counts = anatomy.confusion.names, np.array(anatomy.confusion.counts, dtype=float)

    def plot(axes) -> None:
        cells = np.empty((*counts.shape, 4))  # a single color, which is less transparent for higher counts
        cells[:] = matplotlib.colors.to_rgba(BLUE)
        cells[..., 3] = 0.6 * np.log1p(counts) / np.log1p(max(1, counts.max()))
        axes.imshow(cells, aspect="auto", interpolation="nearest")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if len(names) <= MAX_COUNTS + 1:
            for (i, j), count in np.ndenumerate(counts):
                axes.text(j, i, f"{count:.0f}", ha="center", va="center")
        size = min(8.5, LABEL_POINTS / len(names))
        axes.set_xticks(range(len(names)), map(plain, names), rotation=90 if len(names) > 4 else 0, fontsize=size)
        axes.set_yticks(range(len(names)), map(plain, names), fontsize=size)
        axes.set(xlabel="prediction", ylabel="truth")

    height = max(2.5, min(8, 0.24 * len(names) + 1))
    reading, columns = readings.read_confusion(anatomy.confusion), 1 if len(names) > MAX_NARROW else 0
    return draw("Confusion, background included", reading, plot, height=height, columns=columns)


def _thresholds(anatomy: Anatomy) -> Figure:
    curves = anatomy.curves

    def plot(axes) -> None:
        for name, color in (("precision", BLUE), ("recall", ORANGE), ("f1", GREEN)):
            axes.plot(curves.thresholds, getattr(curves, name), label=name.replace("f1", "F1"), color=color)
        axes.axvline(curves.best_f1.score, color=GRAY, linewidth=0.8, linestyle="--")
        axes.plot([curves.best_f1.score], [curves.best_f1.f1], "o", color=GREEN, markersize=5)
        axes.set(xlabel="score threshold", ylim=(0, 1.02), xlim=(0, 1))
        axes.legend(loc="lower center")

    return draw("Precision, recall and F1 by threshold", readings.read_thresholds(curves), plot)


def _recall(anatomy: Anatomy) -> Figure:
    curves = anatomy.curves.pr
    shown = sorted(curves, key=lambda name: np.mean(curves[name].precision))[:MAX_CLASSES]

    def plot(axes) -> None:
        for name in shown:
            axes.plot(curves[name].recall, curves[name].precision, label=plain(name), linewidth=1.3)
        axes.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02), xlim=(0, 1))
        if shown:
            axes.legend(loc="lower left")

    title = "Precision against recall" + (f", the {MAX_CLASSES} weakest classes" if len(curves) > len(shown) else "")
    return draw(title, readings.read_recall(curves), plot)


def _calibration(anatomy: Anatomy) -> Figure:
    bins = anatomy.calibration.bins

    def plot(axes) -> None:
        axes.plot([0, 1], [0, 1], linewidth=0.8, color=GRAY, linestyle="--")
        axes.plot([b.score for b in bins], [b.precision for b in bins], marker="o", markersize=4, color=BLUE)
        axes.set(xlabel="mean score of a bin", ylabel="precision", xlim=(0, 1), ylim=(0, 1))

    return draw("Scores as probabilities", readings.read_calibration(anatomy.calibration), plot)


def _imbalance(anatomy: Anatomy) -> Figure:
    parts = anatomy.by_imbalance

    def plot(axes) -> None:
        names = ["{:.0f} to {:.0f}".format(*part.background_per_foreground) for part in parts]
        heights = [0 if math.isnan(part.AP) else part.AP for part in parts]
        axes.bar(range(len(parts)), heights, color=BLUE, width=0.6)
        axes.set_xticks(range(len(parts)), names)
        axes.grid(axis="x", visible=False)
        axes.set(
            xlabel="background per foreground anchor", ylabel="AP of these images", ylim=(0, 1.1 * max(heights) or 1)
        )

    return draw("AP in thirds of the images, by imbalance", readings.read_imbalance(parts), plot)
