"""Figures of a census: anchors of levels and images, classes, the fit of the anchors."""

import math

import numpy as np

from detector.core.plotting import plain
from detector.imbalance.census_result import Census
from detector.lab.report.figures.drawing import COLORS, Figure, draw


def draw_census(census: Census) -> list[Figure]:
    """Draw a census. The fit of the anchors is left out where there are no objects."""

    def anchors(levels, images) -> None:
        rows = census.by_level
        left = np.zeros(len(rows))
        for kind in ("foreground", "ignored", "background"):
            counts = np.array([getattr(row, kind) for row in rows], dtype=float)
            levels.barh([row.level for row in rows], counts, left=left, label=kind)
            left += counts
        levels.set(xscale="symlog", xlabel="anchors (logarithmic)")
        levels.legend()
        quantiles = census.by_image.background_per_foreground.quantiles
        shown = [(int(q), v) for q, v in quantiles.items() if not math.isnan(v)]
        images.plot([v for _, v in shown], [q for q, _ in shown], marker="o")
        images.set(xscale="log", xlabel="background per foreground anchor", ylabel="% of images below", ylim=(0, 102))

    def classes(axes) -> None:
        rows = sorted(census.by_class, key=lambda row: row.objects)[-30:]
        place = np.arange(len(rows))
        axes.barh(place + 0.2, [row.objects for row in rows], height=0.4, label="objects")
        axes.barh(place - 0.2, [row.foreground for row in rows], height=0.4, label="foreground anchors")
        axes.set_yticks(place, [plain(row.name) for row in rows])
        axes.set(xscale="symlog", xlabel="number (logarithmic)")
        axes.legend()

    ratio = 0 if math.isnan(census.ratio) else census.ratio
    figures = [
        draw("Anchors of each level, and of each image", f"{ratio:,.0f} background anchors for each "
             "foreground one. The right curve shows how unequal the images are.", anchors, columns=2),
        draw("Classes", "The longest bar against the shortest is the imbalance among classes.", classes,
             height=max(2.2, 0.35 * min(30, len(census.by_class)))),
    ]  # fmt: skip
    if (histogram := census.max_iou) and (suggestion := census.anchor_suggestion):

        def iou(axes) -> None:
            axes.stairs(histogram.counts, histogram.edges, fill=True, color=COLORS[0])
            axes.set(xlabel="IoU of an object with its best anchor", ylabel="objects")

        recall = suggestion.recall
        caption = (
            f"Objects left of the assigner's threshold are matched badly or not at all: {recall.now:.1%} are right "
            f"of it, {recall.suggested:.1%} with the suggested anchors."
        )
        figures.append(draw("How well the anchors fit", caption, iou, height=2.8))
    return figures
