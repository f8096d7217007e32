"""The figure of the average precision of each class."""

import math

from detector.core.plotting import plain
from detector.core.wording import number, short
from detector.evaluation.metrics import ClassMetrics
from detector.lab.report.figures.drawing import BLUE, GRAY, Figure, draw

MAX_CLASSES = 20  # the weakest


def draw_classes(per_class: dict[str, ClassMetrics]) -> Figure:
    """Draw AP over AP50 of each class that has objects, the weakest classes where there are many."""
    measured = {name: values for name, values in per_class.items() if not math.isnan(values.AP)}
    ranked = sorted(measured, key=lambda name: -measured[name].AP)
    shown = ranked[-MAX_CLASSES:]

    def plot(axes) -> None:
        rows = range(len(shown))[::-1]
        axes.barh(rows, [measured[name].AP50 for name in shown], height=0.65, color=GRAY, alpha=0.45, label="AP50")
        axes.barh(rows, [measured[name].AP for name in shown], height=0.65, color=BLUE, label="AP")
        axes.set_yticks(rows, [plain(name) for name in shown])
        axes.set(xlim=(0, 1))
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)

    reading = ""
    if len(ranked) > 1:
        best, worst = ranked[0], ranked[-1]
        gap = number(measured[best].AP - measured[worst].AP)
        reading = f"AP is {number(measured[best].AP)} for {short(best)} and {gap} lower for {short(worst)}."
    elif ranked:
        reading = f"The one class with objects, {short(ranked[0])}, has AP {number(measured[ranked[0]].AP)}."
    title = "AP of each class" if len(ranked) == len(shown) else f"AP of the {MAX_CLASSES} weakest classes"
    return draw(title, reading, plot, height=max(1.6, 0.24 * len(shown) + 0.9))
