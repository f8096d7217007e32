"""Figures of a probe: what each loss makes of the same scores."""

import math

import numpy as np

from detector.core.plotting import plain
from detector.imbalance.probe_result import ProbeResult
from detector.imbalance.vocabulary import GROUPS
from detector.lab.report.figures.drawing import COLORS, Figure, draw


def draw_probe(probe: ProbeResult) -> list[Figure]:
    """Draw a probe: shares of the gradient, cumulative losses, gradient norms, loss against score."""
    losses = probe.losses

    def cumulative(fg, bg) -> None:
        for axes, kind in ((fg, "foreground"), (bg, "background")):
            for name, loss in losses.items():
                curve = loss.cumulative[kind]
                axes.plot(curve.elements, curve.loss, label=plain(name), linewidth=1.1)
            axes.set(title=kind, xlabel="fraction of the elements, easy first", ylabel="fraction of the loss")
        fg.legend(fontsize=7)

    def budget(axes) -> None:
        names = sorted(losses, key=lambda name: losses[name].gradient_foreground)
        left = np.zeros(len(names))
        for group, color in zip(GROUPS, (COLORS[0], COLORS[5], "#9a9a9a", COLORS[4], COLORS[1]), strict=True):
            share = np.array([losses[name].gradient[group] for name in names])
            axes.barh(range(len(names)), share, left=left, label=group.replace("_", " "), color=color)
            left += share
        axes.set_yticks(range(len(names)), map(plain, names))
        axes.set(xlabel="share of |gradient|", xlim=(0, 1))
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3, fontsize=8)

    edges = probe.gradient_norm.edges

    def density(axes, weighted) -> None:
        for kind in ("foreground", "background"):
            axes.stairs(np.maximum(getattr(probe.gradient_norm, kind), 0.5), edges, label=kind, baseline=0.5)
        axes.set(yscale="log", xlabel="gradient norm |p − target|", ylabel="elements")
        axes.legend()
        for name, loss in losses.items():
            weighted.plot((np.array(edges[:-1]) + edges[1:]) / 2, loss.reweighted, label=plain(name), linewidth=1.1)
        weighted.set(xlabel="gradient norm |p − target|", ylabel="share of the loss's |gradient|")
        weighted.legend(fontsize=7)

    def by_score(fg, bg) -> None:
        for axes, kind in ((fg, "foreground"), (bg, "background")):
            for name, loss in losses.items():
                values = [math.nan if mean <= 0 else mean for mean in getattr(loss.loss_by_p, kind)]
                axes.plot(loss.loss_by_p.p, values, marker=".", linewidth=1, label=plain(name))
            axes.set(title=kind, xlabel="score p", ylabel="mean loss of an element", yscale="log")
        fg.legend(fontsize=7)

    return [
        draw("Who gets the gradient", "Each loss on the same scores. Easy background should be small, foreground "
             "large. Outliers are often wrong labels and should be small.", budget,
             height=0.32 * len(losses) + 1.2),
        draw("Cumulative loss", "The focal paper's figure 4: the more a background curve bends to the lower right, the "
             "more its loss concentrates on few hard elements.", cumulative, columns=2),
        draw("Gradient norms, and what each loss makes of them", "The GHM paper's figures: left, how many elements are "
             "how wrong; right, where each loss's gradient comes from.", density, columns=2),
        draw("Loss against score", "Measured means of the elements at each score; a gap means that no element has it.",
             by_score, columns=2),
    ]  # fmt: skip
