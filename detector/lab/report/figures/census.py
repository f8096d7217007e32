"""Figures of a census: anchors of levels and images, classes, the fit of the anchors."""

import math

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from detector.core.plotting import plain
from detector.imbalance import census_readings as readings
from detector.imbalance.census_result import AnchorSuggestion, Census, Histogram
from detector.lab.report.figures.drawing import BACKGROUND, BLUE, FOREGROUND, GRAY, Figure, draw

MAX_CLASSES = 30


def draw_census(census: Census) -> list[Figure]:
    """Draw a census. The fit of the anchors is left out where there are no objects."""
    figures = [_levels(census), _images(census), _classes(census)]
    if census.max_iou is not None and census.anchor_suggestion is not None:
        figures.append(_fit(census.max_iou, census.anchor_suggestion))
    return figures


def _levels(census: Census) -> Figure:
    rows = census.by_level[::-1]
    kinds = {"foreground": FOREGROUND, "ignored": GRAY, "background": BACKGROUND}

    def plot(axes) -> None:
        for i, (kind, color) in enumerate(kinds.items()):
            position = np.arange(len(rows)) + 0.26 * (1 - i)
            axes.barh(position, [getattr(row, kind) for row in rows], height=0.24, label=kind, color=color)
        axes.set_yticks(range(len(rows)), [row.level for row in rows])
        axes.set(xscale="symlog", xlabel="anchors (logarithmic)")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)

    return draw("Anchors of each level", readings.read_levels(census), plot, height=max(2.2, 0.5 * len(rows) + 1))


def _images(census: Census) -> Figure:
    quantiles = census.by_image.background_per_foreground.quantiles
    shown = [(int(q), v) for q, v in quantiles.items() if not math.isnan(v)]

    def plot(axes) -> None:
        axes.plot([v for _, v in shown], [q for q, _ in shown], marker="o", markersize=4)
        axes.set(xscale="log", xlabel="background per foreground anchor", ylabel="% of images below", ylim=(0, 102))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter(NullFormatter())

    return draw("Imbalance of each image", readings.read_images(census), plot)


def _classes(census: Census) -> Figure:
    rows = sorted(census.by_class, key=lambda row: row.objects)[-MAX_CLASSES:]

    def plot(axes) -> None:
        position = np.arange(len(rows))
        axes.barh(position + 0.2, [row.objects for row in rows], height=0.38, label="objects", color=BLUE)
        foreground = [row.foreground for row in rows]
        axes.barh(position - 0.2, foreground, height=0.38, label="foreground anchors", color=GRAY)
        axes.set_yticks(position, [plain(row.name) for row in rows])
        axes.set(xscale="symlog", xlabel="number (logarithmic)")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)

    return draw("Objects of each class", readings.read_classes(census), plot, height=max(2.2, 0.28 * len(rows) + 1))


def _fit(histogram: Histogram, suggestion: AnchorSuggestion) -> Figure:
    def plot(axes) -> None:
        axes.stairs(histogram.counts, histogram.edges, fill=True, color=BLUE)
        axes.set(xlabel="IoU of an object with its best anchor", ylabel="objects")

    return draw("Fit of the anchors", readings.read_fit(suggestion), plot)
