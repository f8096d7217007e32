"""Figures of a training: losses, gradients and meters over the steps."""

from collections import Counter
from functools import partial

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from detector.core.plotting import plain
from detector.lab.report.figures.drawing import COLORS, Figure, draw

SHARES = (
    "From bottom to top, the foreground of each part in full color and its background in a pale color, over the whole "
    "training."
)


def draw_training(steps: list[dict[str, float]], parts: list[dict]) -> list[Figure]:
    """Draw the rows of a run's metrics.csv (`steps`) and parts.csv (`parts`)."""

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
            "Left, where the loss comes from; right, what changes the weights. A share near 0 means that background "
            "dominates, a share near 1 that it hardly counts.",
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
        draw("Scores, and how hard the hard background is", "Foreground should rise and background stay low. "
             "Where both are equal, the detector does not separate them.", meters, columns=2),
        draw("Gradient norms, first and last reading", "Easy elements are at the left, outliers at the right. "
             "An element that stays at the right end late in training often has a wrong label.", norms, height=2.8),
    ]  # fmt: skip
    if not parts:
        return figures
    return [
        *figures,
        draw("Who has the loss, by level and class", SHARES, partial(draw_shares, parts, "loss"), columns=2),
        draw("Who has the gradient, by level and class", SHARES, partial(draw_shares, parts, "gradient"), columns=2),
        draw("Background per foreground, by level and class", "Mean over the run of the anchors that the losses count. "
             "A longer bar means rarer foreground. The 15 longest are shown; no bar means no foreground.",
             partial(draw_ratios, parts), columns=2),
    ]  # fmt: skip


def draw_shares(parts: list[dict], kind: str, *axes: Axes) -> None:
    """Draw the shares of the loss or the gradient at each reading, stacked: levels on the first axes, then classes.

    Foreground has full colors, background pale colors. Beyond ten levels or classes, the smallest are added up.

    Args:
        parts: the rows of parts.csv.
        kind: `loss` or `gradient`.
        axes: two.
    """
    for ax, rows in zip(axes, _levels_and_classes(parts), strict=True):
        fg, bg = (
            {name: np.array([row[f"{kind}_share_{side}"] for row in own]) for name, own in rows.items()}
            for side in ("fg", "bg")
        )
        ranked = sorted(rows, key=lambda name: -(fg[name] + bg[name]).sum())
        layers, colors, labels = [], [], []
        for name, color in zip(ranked, COLORS, strict=False):
            layers += [fg[name], bg[name]]
            colors += [color, matplotlib.colors.to_rgba(color, 0.4)]
            labels += [plain(name), "_"]
        if others := ranked[len(COLORS) :]:
            layers.append(sum(fg[name] + bg[name] for name in others))
            colors.append("#9a9a9a")
            labels.append("others")
        ax.stackplot([row["step"] for row in rows[ranked[0]]], layers, colors=colors, labels=labels, linewidth=0)
        ax.set(xlabel="step", ylabel=f"share of the {kind}", ylim=(0, 1))
        ax.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))


def draw_ratios(parts: list[dict], *axes: Axes) -> None:
    """Draw the 15 highest ratios of background to foreground: of levels on the first axes, then of classes."""
    for ax, rows in zip(axes, _levels_and_classes(parts), strict=True):
        fg, bg = ({name: sum(row[f"num_{side}"] for row in own) for name, own in rows.items()} for side in ("fg", "bg"))
        ratios = sorted((bg[name] / fg[name] if fg[name] else 0, name) for name in rows)[-15:]
        ax.barh(range(len(ratios)), [ratio for ratio, _ in ratios], color=COLORS[0])
        ax.set_yticks(range(len(ratios)), [plain(name) for _, name in ratios])
        ax.set(xscale="symlog", xlabel="background per foreground")


def _levels_and_classes(parts: list[dict]) -> tuple[dict[str, list[dict]], dict[str, list[dict]]]:
    """Return the rows of each level, and of each class, by its name; a last reading that is incomplete is left out."""
    levels: dict[str, list[dict]] = {}
    classes: dict[str, list[dict]] = {}
    rows_of_step = Counter(row["step"] for row in parts if len(row) == len(parts[0]))
    whole = max(rows_of_step.values())
    for row in (row for row in parts if rows_of_step[row["step"]] == whole):
        kind, _, name = row["part"].partition(" ")
        (classes if name else levels).setdefault(name or kind, []).append(row)
    return levels, classes
