"""The figure that compares the metrics of several runs."""

from collections.abc import Sequence

import numpy as np

from detector.core.plotting import plain
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
            axes.bar(np.arange(len(keys)) + i * width, heights, width, label=plain(name))
        axes.set_xticks(np.arange(len(keys)) + 0.4 - width / 2, keys)
        axes.legend(fontsize=8)

    return draw("COCO metrics side by side", "One run each; a small difference may be the seed's.", plot)
