"""Plots of a study's tables, drawn on given axes."""

from pathlib import Path

from matplotlib import pyplot
from matplotlib.axes import Axes

from detector.core.files import replacing
from detector.core.plotting import optional, plain, plotting


def draw_levels(tables: dict, axes: Axes) -> None:
    """Draw the metric of each variant against the levels, with 95% intervals.

    The variants are shifted in x, so that the intervals do not overlap.

    Args:
        tables: the tables of `make_tables`.
        axes: the axes.
    """
    variants, levels = tables["variants"], tables["levels"]
    for i, variant in enumerate(variants):
        rows = [row for row in tables["rows"] if row["variant"] == variant and row["n"]]
        x = [levels.index(row["level"]) + (i - (len(variants) - 1) / 2) * 0.08 for row in rows]
        half = [max(0.0, row["mean"] - row["low"]) if row["n"] > 1 else 0 for row in rows]
        means = [row["mean"] for row in rows]
        axes.errorbar(x, means, yerr=half, marker="o", markersize=4, capsize=3, linewidth=1, label=plain(variant))
    axes.set_xticks(range(len(levels)), map(plain, levels))
    axes.set(ylabel=tables["metric"], xlabel="level", ylim=(0, None))
    axes.legend(fontsize="small")


def panels(tables: dict) -> list[str]:
    """Return the names of the panels of `draw_differences`: each level, and all levels together."""
    return list(dict.fromkeys(test["level"] for test in tables["tests"]))


def draw_differences(tables: dict, *axes: Axes) -> None:
    """Draw the mean paired difference of each variant from the reference, with its 95% interval.

    Args:
        tables: the tables of `make_tables`.
        *axes: the axes of each panel (see `panels`).
    """
    for ax, panel in zip(axes, panels(tables), strict=True):
        tests = [test for test in tables["tests"] if test["level"] == panel][::-1]
        for y, test in enumerate(tests):
            (dot,) = ax.plot(test["difference"], y, "o", color="C0", markersize=4)
            if test["pairs"] > 1:
                ax.plot([test["low"], test["high"]], [y, y], color=dot.get_color(), linewidth=1.5)
        ax.axvline(0, color="grey", linewidth=0.8)
        ax.set_yticks(range(len(tests)), [plain(test["variant"]) for test in tests] if ax is axes[0] else [])
        ax.set_title(plain(panel), fontsize="small")
    against = plain(tables["tests"][0]["against"])
    axes[0].figure.supxlabel(f"{tables['metric']} minus that of {against}", fontsize="small")


def save_plots(tables: dict, folder: Path) -> None:
    """Write levels.png and differences.png. A plot that cannot be drawn gives a line in the log instead.

    Args:
        tables: the tables of `make_tables`.
        folder: the folder of both files.
    """
    with optional(f"{folder / 'levels.png'}"), plotting():
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        draw_levels(tables, axes)
        with replacing(folder / "levels.png") as temporary:
            figure.savefig(temporary, dpi=110)
        pyplot.close(figure)
    with optional(f"{folder / 'differences.png'}"), plotting():
        count, height = len(panels(tables)), 0.5 * len(tables["variants"]) + 1.2
        figure, axes = pyplot.subplots(1, count, figsize=(3 * count, height), layout="constrained", squeeze=False)
        draw_differences(tables, *axes.flat)
        with replacing(folder / "differences.png") as temporary:
            figure.savefig(temporary, dpi=110)
        pyplot.close(figure)
