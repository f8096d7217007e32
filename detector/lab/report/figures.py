"""Each part of a report as an SVG that takes the page's text colour."""

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib import pyplot
from matplotlib.axes import Axes

from detector.core.plotting import plain, plotting
from detector.evaluation.anatomy_result import Anatomy
from detector.imbalance.census_result import Census
from detector.imbalance.probe_result import ProbeResult
from detector.imbalance.vocabulary import GROUPS
from detector.lab.study.plots import draw_differences, draw_levels, panels

INK = "#010203"  # stands for the page's own colour
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6fd1", "#b8860b", "#5f9ea0", "#c44e52"]
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "savefig.transparent": True,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}


SHARES = (
    "From bottom to top, each one's foreground in full colour and its background in pale: who is heard, over the whole "
    "training."
)


@dataclass(frozen=True, slots=True)
class Figure:
    """title; svg; caption: what to look for."""

    title: str
    svg: Markup
    caption: str


def draw(title: str, caption: str, plot: Callable, *, rows: int = 1, columns: int = 1, height: float = 3.4) -> Figure:
    """`plot(*axes)` as a figure."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": title}), plotting():
        figure, axes = pyplot.subplots(rows, columns, figsize=(7.2, height * rows), layout="constrained", squeeze=False)
        plot(*axes.flat)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return Figure(title, Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)), caption)


def training(steps: list[dict[str, float]], parts: list[dict]) -> list[Figure]:
    """Of a run's metrics.csv and parts.csv."""

    def curve(axes, name: str, label: str) -> None:
        shown = [row for row in steps if name in row]
        axes.plot([row["step"] for row in shown], [row[name] for row in shown], label=label, linewidth=1.1)

    def losses(axes, share) -> None:
        for name, label in (("cls_fg", "class, foreground"), ("cls_bg", "class, background"), ("box", "box")):
            curve(axes, name, label)
        axes.set(ylabel="loss", yscale="log", xlabel="step")
        axes.legend()
        curve(share, "fg_gradient_share", "foreground")
        share.set(ylabel="foreground's share of |gradient|", ylim=(0, 1), xlabel="step")

    figures = [
        draw(
            "Loss and gradient, step by step",
            "Left, who the loss comes from; right, who moves the weights. A share near 0 means that background drowns "
            "the objects, near 1 that it is hardly heard.",
            losses,
            columns=2,
        )
    ]
    measured = [row for row in steps if "mean_p_fg" in row]
    if not measured:
        return figures

    def meters(scores, hard) -> None:
        for name, label in (
            ("mean_p_fg", "foreground"),
            ("mean_p_hard_bg", "hard background"),
            ("mean_p_bg", "background"),
        ):
            curve(scores, name, label)
        scores.set(ylabel="mean score", ylim=(0, 1), xlabel="step")
        scores.legend()
        curve(hard, "loss_share_top1", "")
        hard.set(ylabel="hardest 1%'s share of background loss", ylim=(0, 1), xlabel="step")

    def norms(axes) -> None:
        names = sorted(name for name in measured[0] if name.startswith("gradient_norm_"))
        for row, label in ((measured[0], "first reading"), (measured[-1], "last reading")):
            axes.step(np.arange(len(names)) / len(names), [max(row[n], 0.5) for n in names], where="post", label=label)
        axes.set(yscale="log", ylabel="elements", xlabel="gradient norm |p − target|")
        axes.legend()

    figures += [
        draw("Scores, and how hard the hard background is", "Foreground should rise and background stay low; "
             "where both lie together the detector tells nothing apart.", meters, columns=2),
        draw("Gradient norms, first and last reading", "Easy elements stand at the left, outliers at the right. "
             "What is left at the right end late in training is often a wrong label.", norms, height=2.8),
    ]  # fmt: skip
    if not parts:
        return figures
    return [
        *figures,
        draw("Who has the loss, by level and class", SHARES, partial(draw_shares, parts, "loss"), columns=2),
        draw("Who has the gradient, by level and class", SHARES, partial(draw_shares, parts, "gradient"), columns=2),
        draw("Background per foreground, by level and class", "Mean over the run of what the losses were given: the "
             "longer the bar, the rarer a positive (the longest 15; without a bar there was none).",
             partial(draw_ratios, parts), columns=2),
    ]  # fmt: skip


def draw_shares(parts: list[dict], kind: str, *axes: Axes) -> None:
    """Of each level, and each class, its part of the loss or gradient at each reading, stacked: the foreground's in
    full colour, the background's in pale; beyond ten the smallest are one."""
    for ax, rows in zip(axes, _levels_and_classes(parts), strict=True):
        fg, bg = (
            {name: np.array([row[f"{kind}_share_{side}"] for row in own]) for name, own in rows.items()}
            for side in ("fg", "bg")
        )
        ranked = sorted(rows, key=lambda name: -(fg[name] + bg[name]).sum())
        layers, colours, labels = [], [], []
        for name, colour in zip(ranked, COLOURS, strict=False):
            layers += [fg[name], bg[name]]
            colours += [colour, matplotlib.colors.to_rgba(colour, 0.4)]
            labels += [plain(name), "_"]
        if others := ranked[len(COLOURS) :]:
            layers.append(sum(fg[name] + bg[name] for name in others))
            colours.append("#9a9a9a")
            labels.append("others")
        ax.stackplot([row["step"] for row in rows[ranked[0]]], layers, colors=colours, labels=labels, linewidth=0)
        ax.set(xlabel="step", ylabel=f"share of the {kind}", ylim=(0, 1))
        ax.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))


def draw_ratios(parts: list[dict], *axes: Axes) -> None:
    """Of each level, and each class, background per foreground over all readings; the highest, at most 15."""
    for ax, rows in zip(axes, _levels_and_classes(parts), strict=True):
        fg, bg = ({name: sum(row[f"num_{side}"] for row in own) for name, own in rows.items()} for side in ("fg", "bg"))
        ratios = sorted((bg[name] / fg[name] if fg[name] else 0, name) for name in rows)[-15:]
        ax.barh(range(len(ratios)), [ratio for ratio, _ in ratios], color=COLOURS[0])
        ax.set_yticks(range(len(ratios)), [plain(name) for _, name in ratios])
        ax.set(xscale="symlog", xlabel="background per foreground")


def _levels_and_classes(parts: list[dict]) -> tuple[dict[str, list[dict]], dict[str, list[dict]]]:
    """The rows of each level, and of each class, by its name; without a last reading that is only half written."""
    levels: dict[str, list[dict]] = {}
    classes: dict[str, list[dict]] = {}
    rows_of_step = Counter(row["step"] for row in parts if len(row) == len(parts[0]))
    whole = max(rows_of_step.values())
    for row in (row for row in parts if rows_of_step[row["step"]] == whole):
        kind, _, name = row["part"].partition(" ")
        (classes if name else levels).setdefault(name or kind, []).append(row)
    return levels, classes


def census(census: Census) -> list[Figure]:
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
        draw("Classes", "How far the longest bar is from the shortest is the imbalance among classes.", classes,
             height=max(2.2, 0.35 * min(30, len(census.by_class)))),
    ]  # fmt: skip
    if (histogram := census.max_iou) and (suggestion := census.anchor_suggestion):

        def iou(axes) -> None:
            axes.stairs(histogram.counts, histogram.edges, fill=True, color=COLOURS[0])
            axes.set(xlabel="IoU of an object with its best anchor", ylabel="objects")

        recall = suggestion.recall
        caption = (
            f"Objects left of the assigner's threshold are matched badly or not at all: {recall.now:.1%} are right "
            f"of it, {recall.suggested:.1%} with the suggested anchors."
        )
        figures.append(draw("How well the anchors fit", caption, iou, height=2.8))
    return figures


def probe(probe: ProbeResult) -> list[Figure]:
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
        for group, colour in zip(GROUPS, (COLOURS[0], COLOURS[5], "#9a9a9a", COLOURS[4], COLOURS[1]), strict=True):
            share = np.array([losses[name].gradient[group] for name in names])
            axes.barh(range(len(names)), share, left=left, label=group.replace("_", " "), color=colour)
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
             "large, and outliers, often wrong labels, not in charge.", budget, height=0.32 * len(losses) + 1.2),
        draw("Cumulative loss", "The focal paper's figure 4: the more a background curve bends to the lower right, the "
             "more its loss concentrates on few hard elements.", cumulative, columns=2),
        draw("Gradient norms, and what each loss makes of them", "The GHM paper's figures: left, how many elements are "
             "how wrong; right, where each loss's pull comes from.", density, columns=2),
        draw("Loss against score", "Measured means of the elements at each score; a gap means that no element has it.",
             by_score, columns=2),
    ]  # fmt: skip


def anatomy(anatomy: Anatomy) -> list[Figure]:
    def errors(axes) -> None:
        names = [name for name in anatomy.tide if name != "AP50"]
        axes.barh(names[::-1], [anatomy.tide[name] for name in names[::-1]], color=COLOURS[1])
        axes.set(xlabel="AP50 that mending these errors would add")

    def confusion(axes) -> None:
        names, counts = anatomy.confusion.names, np.array(anatomy.confusion.counts, dtype=float)
        cells = np.empty((*counts.shape, 4))  # one colour over whatever the page's is, more of it for more
        cells[:] = matplotlib.colors.to_rgba(COLOURS[5])
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
        imbalance.bar(names, [0 if math.isnan(part.AP) else part.AP for part in parts], color=COLOURS[2])
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


def study(tables: dict) -> list[Figure]:
    caption = "Means over the seeds with 95% intervals; where intervals overlap widely, look at the paired tests."
    paired = "Paired by level and seed, with 95% intervals: an interval that crosses the line may be chance."
    columns, height = len(panels(tables)), 0.3 * len(tables["variants"]) + 1.4
    levels, differences = partial(draw_levels, tables), partial(draw_differences, tables)
    return [
        draw(f"{tables['metric']} against imbalance", caption, levels, height=4),
        draw("Differences", paired, differences, columns=columns, height=height),
    ]


def bars(names: Sequence[str], numbers: Sequence[dict[str, float]], keys: Sequence[str]) -> Figure:
    """Draw several runs' metrics side by side. numbers: each run's, by name."""

    def plot(axes) -> None:
        width = 0.8 / len(names)
        for i, (name, values) in enumerate(zip(names, numbers, strict=True)):
            heights = [values.get(key, 0) for key in keys]
            axes.bar(np.arange(len(keys)) + i * width, heights, width, label=plain(name))
        axes.set_xticks(np.arange(len(keys)) + 0.4 - width / 2, keys)
        axes.legend(fontsize=8)

    return draw("COCO metrics side by side", "One run each; a small difference may be the seed's.", plot)
