"""Figures of the levels and classes of a training: their shares of the loss and of the gradient, their foreground."""

from collections import Counter
from functools import partial

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from detector.core.plotting import plain
from detector.core.wording import percent, ratio, short
from detector.lab.report.figures.drawing import COLORS, FOREGROUND, GRAY, Figure, draw
from detector.lab.report.series import smooth

MAX_BARS = 15
Rows = dict[str, list[dict]]  # the rows of parts.csv by the name of a level or class


def draw_parts(parts: list[dict]) -> list[Figure]:
    """Draw the rows of parts.csv: the shares over the training, then the ratios of background to foreground."""
    kinds = {kind: rows for kind, rows in zip(("level", "class"), levels_and_classes(parts), strict=True) if rows}
    figures = [
        draw(f"Shares of the {quantity}, by {kind}", _read_shares(rows, quantity),
             partial(draw_shares, rows, quantity), height=2.8)
        for kind, rows in kinds.items() if len(next(iter(rows.values()))) > 1
        for quantity in ("loss", "gradient")
    ]  # fmt: skip
    for kind, rows in kinds.items():
        height = max(1.6, 0.24 * min(MAX_BARS, len(rows)) + 0.8)
        title = f"Background per foreground, by {kind}"
        figures.append(draw(title, _read_ratios(rows), partial(draw_ratios, rows), height=height))
    return figures


def draw_shares(rows: Rows, quantity: str, axes: Axes) -> None:
    """Draw the moving averages of the shares of the loss or the gradient, stacked.

    The foreground of a level or class has a full color, and its background a pale color. Beyond nine levels or
    classes, the smallest are added up.

    Args:
        rows: the readings of each level or class.
        quantity: `loss` or `gradient`.
        axes: the axes.
    """
    fg, bg = (
        {name: smooth(np.array([row[f"{quantity}_share_{side}"] for row in rows[name]])) for name in rows}
        for side in ("fg", "bg")
    )
    ranked = sorted(rows, key=lambda name: -(fg[name] + bg[name]).sum())
    layers, colors, labels = [], [], []
    for name, color in zip(ranked, COLORS, strict=False):
        layers += [fg[name], bg[name]]
        colors += [color, matplotlib.colors.to_rgba(color, 0.4)]
        labels += [plain(name), "_"]
    if others := ranked[len(COLORS) :]:
        layers.append(sum(fg[name] + bg[name] for name in others))
        colors.append(GRAY)
        labels.append("others")
    axes.stackplot([row["step"] for row in rows[ranked[0]]], layers, colors=colors, labels=labels, linewidth=0)
    axes.set(xlabel="step", ylabel=f"share of the {quantity}", ylim=(0, 1))
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)


def draw_ratios(rows: Rows, axes: Axes) -> None:
    """Draw the 15 highest ratios of background to foreground. A level or class without foreground has no bar."""
    ratios = sorted((value, name) for name, value in _ratios(rows).items())[-MAX_BARS:]
    axes.barh(range(len(ratios)), [value for value, _ in ratios], color=FOREGROUND, height=0.65)
    axes.set_yticks(range(len(ratios)), [plain(name) for _, name in ratios])
    axes.set(xscale="symlog", xlabel="background per foreground")
    axes.grid(axis="y", visible=False)


def levels_and_classes(parts: list[dict]) -> tuple[Rows, Rows]:
    """Return the rows of each level, and of each class, by its name; a last reading that is incomplete is left out."""
    levels: Rows = {}
    classes: Rows = {}
    rows_of_step = Counter(row["step"] for row in parts if len(row) == len(parts[0]))
    complete = max(rows_of_step.values())
    for row in (row for row in parts if rows_of_step[row["step"]] == complete):
        kind, _, name = row["part"].partition(" ")
        (classes if name else levels).setdefault(name or kind, []).append(row)
    return levels, classes


def _ratios(rows: Rows) -> dict[str, float]:
    """Divide the background of all readings by their foreground; 0 without foreground."""
    fg, bg = ({name: sum(row[f"num_{side}"] for row in rows[name]) for name in rows} for side in ("fg", "bg"))
    return {name: bg[name] / fg[name] if fg[name] else 0 for name in rows}


def _read_shares(rows: Rows, quantity: str) -> str:
    sides = ("fg", "bg")
    means = {
        name: [np.mean([row[f"{quantity}_share_{side}"] for row in rows[name]]) for side in sides] for name in rows
    }
    largest = max(means, key=lambda name: sum(means[name]))
    fg, bg = means[largest]
    return (
        f"{short(largest)} has the largest share of the {quantity}: {percent(fg)} on its foreground and {percent(bg)} "
        "on its background (pale), averaged over the run."
    )


def _read_ratios(rows: Rows) -> str:
    ratios = _ratios(rows)
    rarest = max(ratios, key=ratios.__getitem__)
    without = [name for name, value in ratios.items() if not value]
    text = f"{short(rarest)} has the rarest foreground: {ratio(ratios[rarest])} background anchors for each."
    return text + (f" {short(without[0])} has no foreground." if without else "")
