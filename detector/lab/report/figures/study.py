"""Figures of a study: means and paired differences."""

from functools import partial

from detector.lab.report.figures.drawing import Figure, draw
from detector.lab.study.plots import draw_differences, draw_levels, panels


def draw_study(tables: dict) -> list[Figure]:
    """Draw the tables of a study."""
    caption = "Means over the seeds with 95% intervals; where intervals overlap widely, look at the paired tests."
    paired = "Paired by level and seed, with 95% intervals: an interval that crosses the line may be chance."
    columns, height = len(panels(tables)), 0.3 * len(tables["variants"]) + 1.4
    levels, differences = partial(draw_levels, tables), partial(draw_differences, tables)
    return [
        draw(f"{tables['metric']} against imbalance", caption, levels, height=4),
        draw("Differences", paired, differences, columns=columns, height=height),
    ]
