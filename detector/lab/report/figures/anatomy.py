"""Figures of an anatomy: error types, confusion, thresholds, calibration."""

import math

import matplotlib
import numpy as np

from detector.core.plotting import plain
from detector.evaluation.anatomy_result import Anatomy
from detector.lab.report.figures.drawing import COLORS, Figure, draw


def draw_anatomy(anatomy: Anatomy) -> list[Figure]:
    """Draw an anatomy: error types, confusion, thresholds, calibration and imbalance."""

    def errors(axes) -> None:
        names = [name for name in anatomy.tide if name != "AP50"]
        axes.barh(names[::-1], [anatomy.tide[name] for name in names[::-1]], color=COLORS[1])
        axes.set(xlabel="AP50 that repairing these errors adds")

    def confusion(axes) -> None:
        names, counts = anatomy.confusion.names, np.array(anatomy.confusion.counts, dtype=float)
        cells = np.empty((*counts.shape, 4))  # a single color, which is less transparent for higher counts
        cells[:] = matplotlib.colors.to_rgba(COLORS[5])
        cells[..., 3] = 0.8 * np.log1p(counts) / np.log1p(max(1, counts.max()))
        axes.imshow(cells, aspect="auto", interpolation="nearest")
        axes.grid(False)
        if len(names) <= 12:
            for (i, j), count in np.ndenumerate(counts):
                axes.text(j, i, f"{count:.0f}", ha="center", va="center")
        axes.set_xticks(range(len(names)), map(plain, names), rotation=90 if len(names) > 6 else 0)
        axes.set_yticks(range(len(names)), map(plain, names))
        axes.set(xlabel="taken for", ylabel="truth")

    def curves(threshold, recall) -> None:
        for name in ("precision", "recall", "f1"):
            threshold.plot(anatomy.curves.thresholds, getattr(anatomy.curves, name), label=name)
        threshold.set(xlabel="score threshold", ylim=(0, 1.02))
        threshold.legend()
        for name, curve in list(anatomy.curves.pr.items())[:10]:
            recall.plot(curve.recall, curve.precision, label=plain(name), linewidth=1.1)
        recall.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02))
        recall.legend(fontsize=7)

    def trust(reliability, imbalance) -> None:
        bins = anatomy.calibration.bins
        reliability.plot([0, 1], [0, 1], linewidth=0.8, color="#9a9a9a")
        reliability.plot([b.score for b in bins], [b.precision for b in bins], marker="o")
        reliability.set(xlabel="score", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
        parts = anatomy.by_imbalance
        names = ["{:.0f} to {:.0f}".format(*part.background_per_foreground) for part in parts]
        imbalance.bar(names, [0 if math.isnan(part.AP) else part.AP for part in parts], color=COLORS[2])
        imbalance.set(xlabel="background per foreground anchor", ylabel="AP of these images")

    best, ece = anatomy.curves.best_f1, anatomy.calibration.ece
    return [
        draw("What costs AP50", "TIDE's error types: the longest bar is what to repair first.", errors, height=2.8),
        draw("Confusion, background included", f"At score {anatomy.confusion.score:.2f}. The last column are "
             "objects missed, the last row detections of nothing.", confusion, height=3.8),
        draw("Thresholds", f"Best F1 {best.f1:.3f} at score {best.score:.2f}. Right: precision against recall "
             "of each class (ten at most).", curves, columns=2),
        draw("Can a score be believed; does imbalance hurt", "Left, points below the line are overconfident"
             + (f" (expected calibration error {ece:.3f})" if not math.isnan(ece) else "")
             + ". Right, AP in each third of the images.", trust, columns=2),
    ]  # fmt: skip
