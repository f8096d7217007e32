"""Figures of a study: means and paired differences."""

import math
from functools import partial

from detector.core.wording import counted, number, short
from detector.lab.report.figures.drawing import Figure, draw
from detector.lab.study.plots import draw_differences, draw_levels, panels


def draw_study(tables: dict) -> list[Figure]:
    """Draw the tables of a study."""
    columns, height = len(panels(tables)), 0.3 * len(tables["variants"]) + 1.4
    levels, differences = partial(draw_levels, tables), partial(draw_differences, tables)
    return [
        draw(f"{tables['metric']} against imbalance", _read_levels(tables), levels, height=3.4, columns=1),
        draw("Paired differences", _read_differences(tables), differences, columns=columns, height=height),
    ]


def _read_levels(tables: dict) -> str:
    """Name the best variant of the last level."""
    rows = [row for row in tables["rows"] if row["level"] == tables["levels"][-1] and row["n"]]
    if not rows:
        return ""
    best = max(rows, key=lambda row: row["mean"])
    return (
        f"At {short(best['level'])}, {short(best['variant'])} has the highest mean {tables['metric']}: "
        f"{number(best['mean'])} over {counted(best['n'], 'run')}."
    )


def _read_differences(tables: dict) -> str:
    """Count the differences whose interval excludes 0."""
    tests = [test for test in tables["tests"] if not math.isnan(test["low"])]
    clear = [test for test in tests if test["low"] > 0 or test["high"] < 0]
    if not tests:
        return ""
    text = f"{len(clear)} of {counted(len(tests), 'difference')} have a 95% interval without 0"
    if not clear:
        return f"{text}, so each difference may be chance."
    largest = max(clear, key=lambda test: abs(test["difference"]))
    name = f"{short(largest['variant'])} at {short(largest['level'])}"
    return f"{text}; the largest is {name}: {largest['difference']:+.3f}."
