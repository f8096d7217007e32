"""The drawing of a figure: an SVG that takes the text color of the page."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib import pyplot
from matplotlib.axes import Axes

from detector.core.plotting import plotting
from detector.lab.report.series import Series

INK = "#010203"  # the page's text color replaces it
# each has a contrast of 3 or more with the light and with the dark page
BLUE, ORANGE, GREEN, PINK, GOLD = "#2a7fd4", "#d9660a", "#12936c", "#c9508f", "#a67a00"
VIOLET, CYAN, BROWN, RED, GRAY = "#8468d6", "#1590ad", "#a5673f", "#d0474a", "#858b93"
COLORS = [BLUE, ORANGE, GREEN, PINK, GOLD, VIOLET, CYAN, BROWN, RED]
FOREGROUND, BACKGROUND = BLUE, ORANGE
WIDTH = 4.0  # inches of a figure in one column of the page
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.prop_cycle": pyplot.cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.2,
    "savefig.transparent": True,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the page.

    title: what is drawn.
    svg: the drawing.
    reading: a sentence on what the data show; empty where they are too few.
    is_wide: whether it takes all columns of the page.
    """

    title: str
    svg: Markup
    reading: str
    is_wide: bool = False


def draw(title: str, reading: str, plot: Callable, *, height: float = 2.5, columns: int = 0) -> Figure:
    """Draw a figure.

    Args:
        title: what is drawn.
        reading: a sentence on what the data show.
        plot: draws on the figure's axes.
        height: inches.
        columns: the number of axes of a wide figure; 0 is a figure with one axes in one column of the page.
    """
    size = (2 * WIDTH if columns else WIDTH, height)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": title}), plotting():
        figure, axes = pyplot.subplots(1, columns or 1, figsize=size, layout="constrained", squeeze=False)
        plot(*axes.flat)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the groups of all figures have the same ids
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    return Figure(title, Markup(svg), reading, is_wide=columns > 0)


def draw_curve(axes: Axes, series: Series, color: str, label: str = "") -> None:
    """Draw the moving averages of a series as a line, and its readings as pale points."""
    if len(series):
        raw, line = series.thinned(), series.smoothed().thinned()
        axes.plot(raw.steps, raw.values, ".", color=color, alpha=0.38, markersize=4, markeredgewidth=0)
        axes.plot(line.steps, line.values, color=color, label=label)
