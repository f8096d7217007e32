"""The figure that compares the metrics of several runs."""

import math
from collections.abc import Sequence

import numpy as np

from detector.core.plotting import plain
from detector.core.wording import number, short
from detector.lab.report.figures.drawing import Figure, draw


def draw_comparison(names: Sequence[str], numbers: Sequence[dict[str, float]], keys: Sequence[str]) -> Figure:
    """Draw the metrics of several runs side by side.

    Args:
        names: the runs.
        numbers: the metrics of each run, by name. A metric may be missing or NaN.
        keys: the metrics to draw.
    """

    def plot(axes) -> None:
        width = 0.8 / len(names)
        for i, (name, values) in enumerate(zip(names, numbers, strict=True)):
            heights = [values.get(key, 0) for key in keys]
            axes.bar(np.arange(len(keys)) + i * width, heights, width * 0.92, label=plain(name))
        axes.set_xticks(np.arange(len(keys)) + 0.4 - width / 2, keys)
        axes.grid(axis="x", visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(4, len(names)))

    return draw("COCO metrics side by side", _read(names, numbers, keys), plot, height=3, columns=1)


def _read(names: Sequence[str], numbers: Sequence[dict[str, float]], keys: Sequence[str]) -> str:
    """Name the metric in which the runs differ most."""
    spreads = {}
    for key in keys:
        values = {name: run.get(key, math.nan) for name, run in zip(names, numbers, strict=True)}
        values = {name: value for name, value in values.items() if not math.isnan(value)}
        if len(values) > 1:
            spreads[key] = (max(values.values()) - min(values.values()), max(values, key=values.__getitem__))
    if not spreads:
        return ""
    key = max(spreads, key=lambda name: spreads[name][0])
    return f"The runs differ most in {key}: by {number(spreads[key][0])}, and {short(spreads[key][1])} has the highest."
