"""Figures of a training: losses, gradients and meters over the steps."""

import numpy as np

from detector.core.wording import number, percent, ratio
from detector.lab.report.figures.drawing import BACKGROUND, FOREGROUND, GREEN, PINK, VIOLET, Figure, draw, draw_curve
from detector.lab.report.figures.shares import draw_parts
from detector.lab.report.series import Series, read_series

LATE = 0.9  # a curve that settles after this part of the run still moves at the end
OUTLIER_BINS = 1  # of the ten bins of the gradient norm: norms of 0.9 and more


def draw_training(steps: list[dict[str, float]], parts: list[dict]) -> list[Figure]:
    """Draw the rows of a run's metrics.csv (`steps`) and parts.csv (`parts`)."""
    figures = [_losses(steps), _gradient(steps)]
    measured = [row for row in steps if "mean_p_fg" in row]
    if measured:
        figures += [_scores(measured), _hardest(measured), _norms(measured)]
    return figures + (draw_parts(parts) if measured and parts else [])


def _losses(steps: list[dict[str, float]]) -> Figure:
    def plot(axes) -> None:
        for name, label, color in (
            ("cls_fg", "class, foreground", FOREGROUND),
            ("cls_bg", "class, background", BACKGROUND),
            ("box", "box", GREEN),
        ):
            draw_curve(axes, read_series(steps, name), color, label)
        axes.set(ylabel="loss", yscale="log", xlabel="step")
        axes.legend()

    return draw("Loss", _read_loss(read_series(steps, "loss")), plot)


def _read_loss(loss: Series) -> str:
    if len(loss) < 2:
        return ""
    settled, last = loss.settled_at(), loss.steps[-1]
    change = f"The loss goes from {number(loss.start, 2)} to {number(loss.end, 2)}"
    if settled > LATE * last:
        return f"{change} and still moves at the end of the {last + 1:,.0f} steps."
    return f"{change} and hardly moves after step {settled:,.0f} of {last + 1:,.0f}."


def _gradient(steps: list[dict[str, float]]) -> Figure:
    share = read_series(steps, "fg_gradient_share")

    def plot(axes) -> None:
        draw_curve(axes, share, FOREGROUND, "foreground")
        axes.set(ylabel="foreground's share of |gradient|", ylim=(0, 1), xlabel="step")

    reading = f"Foreground has {percent(share.start)} of the gradient at the start and {percent(share.end)} at the end."
    return draw("Share of the gradient on foreground", reading if len(share) else "", plot)


def _scores(measured: list[dict[str, float]]) -> Figure:
    def plot(axes) -> None:
        for name, label, color in (
            ("mean_p_fg", "foreground", FOREGROUND),
            ("mean_p_hard_bg", "hard background", PINK),
            ("mean_p_bg", "background", BACKGROUND),
        ):
            draw_curve(axes, read_series(measured, name), color, label)
        axes.set(ylabel="mean score", ylim=(0, 1), xlabel="step")
        axes.legend()

    foreground, background = read_series(measured, "mean_p_fg"), read_series(measured, "mean_p_bg")
    reading = ""
    if len(foreground) and len(background) and background.end > 0:
        reading = (
            f"At the end foreground elements score {number(foreground.end, 2)} on average, "
            f"{ratio(foreground.end / background.end)} times the {number(background.end)} of background elements."
        )
    return draw("Mean scores", reading, plot)


def _hardest(measured: list[dict[str, float]]) -> Figure:
    share = read_series(measured, "loss_share_top1")

    def plot(axes) -> None:
        draw_curve(axes, share, VIOLET)
        axes.set(ylabel="share of the background loss", ylim=(0, 1), xlabel="step")

    reading = (
        f"The hardest 1% of the background has {percent(share.start)} of the background loss at the start "
        f"and {percent(share.end)} at the end."
        if len(share)
        else ""
    )
    return draw("Loss on the hardest 1% of the background", reading, plot)


def _norms(measured: list[dict[str, float]]) -> Figure:
    names = sorted(name for name in measured[0] if name.startswith("gradient_norm_"))
    first, last = (np.array([row.get(name, 0) for name in names]) for row in (measured[0], measured[-1]))

    def plot(axes) -> None:
        edges = np.arange(len(names) + 1) / len(names)
        axes.stairs(np.maximum(first, 0.5), edges, baseline=0.5, color=BACKGROUND, label="first reading")
        axes.stairs(np.maximum(last, 0.5), edges, baseline=0.5, color=FOREGROUND, label="last reading", linewidth=1.8)
        axes.set(yscale="log", ylabel="elements", xlabel="gradient norm |p − target|")
        axes.legend()

    outliers = [counts[-OUTLIER_BINS:].sum() for counts in (first, last)]
    reading = (
        f"{outliers[0]:,.0f} elements are outliers (gradient norm of 0.9 or more) in the first reading, and "
        f"{outliers[1]:,.0f} in the last reading."
    )
    return draw("Gradient norms", reading if names else "", plot)
