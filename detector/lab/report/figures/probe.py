"""Figures of a probe: each loss on the same scores."""

import math

import numpy as np
from matplotlib.axes import Axes

from detector.core.plotting import plain
from detector.imbalance import probe_readings as readings
from detector.imbalance.probe_result import ProbeResult
from detector.imbalance.vocabulary import GROUPS
from detector.lab.report.figures.drawing import (
    BACKGROUND,
    BLUE,
    CYAN,
    FOREGROUND,
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    VIOLET,
    Figure,
    draw,
)

GROUP_COLORS = (BLUE, CYAN, GRAY, PINK, ORANGE)
COLORED = (BLUE, ORANGE, GREEN, VIOLET)
KINDS = ("foreground", "background")


def draw_probe(probe: ProbeResult) -> list[Figure]:
    """Draw a probe: shares of the gradient, gradient norms, cumulative losses, loss against score."""
    return [
        _budget(probe),
        _norms(probe),
        _weighted_norms(probe),
        *(_cumulative(probe, kind) for kind in KINDS),
        *(_by_score(probe, kind) for kind in KINDS),
    ]


def _budget(probe: ProbeResult) -> Figure:
    losses = probe.losses

    def plot(axes) -> None:
        names = sorted(losses, key=lambda name: losses[name].gradient_foreground)
        left = np.zeros(len(names))
        for group, color in zip(GROUPS, GROUP_COLORS, strict=True):
            share = np.array([losses[name].gradient[group] for name in names])
            axes.barh(range(len(names)), share, left=left, label=group.replace("_", " "), color=color, height=0.7)
            left += share
        axes.set_yticks(range(len(names)), map(plain, names))
        axes.set(xlabel="share of |gradient|", xlim=(0, 1))
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)

    return draw("Shares of the gradient", readings.read_budget(probe), plot, height=0.21 * len(losses) + 1.2)


def _norms(probe: ProbeResult) -> Figure:
    edges = probe.gradient_norm.edges

    def plot(axes) -> None:
        for kind, color in zip(KINDS, (FOREGROUND, BACKGROUND), strict=True):
            counts = np.maximum(getattr(probe.gradient_norm, kind), 0.5)
            axes.stairs(counts, edges, label=kind, baseline=0.5, color=color, linewidth=1.5)
        axes.set(yscale="log", xlabel="gradient norm |p − target|", ylabel="elements")
        axes.legend()

    return draw("Gradient norms of the elements", readings.read_norms(probe), plot)


def _weighted_norms(probe: ProbeResult) -> Figure:
    edges = np.array(probe.gradient_norm.edges)

    def plot(axes) -> None:
        for name, style in _styles(probe):
            axes.plot((edges[:-1] + edges[1:]) / 2, probe.losses[name].reweighted, label=plain(name), **style)
        axes.set(xlabel="gradient norm |p − target|", ylabel="share of |gradient|")
        _explain(axes, probe)

    return draw("Gradient of each loss, by gradient norm", readings.read_weighted(probe), plot)


def _cumulative(probe: ProbeResult, kind: str) -> Figure:
    def plot(axes) -> None:
        for name, style in _styles(probe):
            curve = probe.losses[name].cumulative[kind]
            axes.plot(curve.elements, curve.loss, label=plain(name), **style)
        axes.set(xlabel=f"share of the {kind} elements, easy ones first", ylabel="share of their loss")
        _explain(axes, probe)

    return draw(f"Cumulative loss of the {kind}", readings.read_cumulative(probe, kind), plot)


def _by_score(probe: ProbeResult, kind: str) -> Figure:
    def plot(axes) -> None:
        for name, style in _styles(probe):
            curve = probe.losses[name].loss_by_p
            values = [math.nan if mean <= 0 else mean for mean in getattr(curve, kind)]
            axes.plot(curve.p, values, marker=".", markersize=3, label=plain(name), **style)
        axes.set(xlabel="score p", ylabel="mean loss of an element", yscale="log", xlim=(0, 1))
        _explain(axes, probe)

    return draw(f"Loss of the {kind}, by score", readings.read_by_score(probe, kind), plot)


def _styles(probe: ProbeResult) -> list[tuple[str, dict]]:
    """Return how the curve of each loss is drawn: `readings.chosen` losses in colors over pale lines of the others."""
    colors = dict(zip(readings.chosen(probe), COLORED, strict=False))
    pale = {"color": GRAY, "alpha": 0.4, "linewidth": 0.8}
    return [(name, pale) for name in probe.losses if name not in colors] + [
        (name, {"color": color, "linewidth": 1.6}) for name, color in reversed(colors.items())
    ]


def _explain(axes: Axes, probe: ProbeResult) -> None:
    """Name the colored curves, and the pale curves together."""
    lines = {line.get_label(): line for line in axes.get_lines()}
    names = [plain(name) for name in readings.chosen(probe)]
    handles, labels = [lines[name] for name in names], list(names)
    if len(lines) > len(names):
        handles.append(next(line for name, line in lines.items() if name not in names))
        labels.append("other losses")
    axes.legend(handles, labels)
