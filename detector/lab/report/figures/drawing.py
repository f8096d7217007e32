"""The drawing of a figure: an SVG that takes the text color of the page."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib import pyplot

from detector.core.plotting import plotting

INK = "#010203"  # the page's text color replaces it
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6fd1", "#b8860b", "#5f9ea0", "#c44e52"]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.prop_cycle": pyplot.cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "savefig.transparent": True,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the page. The caption says what to look for."""

    title: str
    svg: Markup
    caption: str


def draw(title: str, caption: str, plot: Callable, *, rows: int = 1, columns: int = 1, height: float = 3.4) -> Figure:
    """Draw a figure.

    Args:
        title: the title, which the page shows above the figure.
        caption: what to look for.
        plot: draws on the figure's axes, row by row.
        rows, columns: how many axes there are.
        height: of a row, in inches.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": title}), plotting():
        figure, axes = pyplot.subplots(rows, columns, figsize=(7.2, height * rows), layout="constrained", squeeze=False)
        plot(*axes.flat)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return Figure(title, Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)), caption)
