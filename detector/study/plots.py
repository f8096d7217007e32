"""Pictures of a study's tables."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def plot_levels(tables: dict, file: Path) -> None:
    """The metric against the levels, a line a variant with its 95% intervals; shifted a little, so that all show."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    variants, levels = tables["variants"], tables["levels"]
    for i, variant in enumerate(variants):
        own = {row["level"]: row for row in tables["rows"] if row["variant"] == variant and row["n"]}
        shown = [level for level in levels if level in own]
        x = [levels.index(level) + (i - (len(variants) - 1) / 2) * 0.08 for level in shown]
        means = [own[level]["mean"] for level in shown]
        below = [max(0.0, own[level]["mean"] - own[level]["low"]) if own[level]["n"] > 1 else 0 for level in shown]
        axes.errorbar(x, means, yerr=below, marker="o", markersize=4, capsize=3, linewidth=1, label=variant)
    axes.set_xticks(range(len(levels)), levels)
    axes.set(ylabel=tables["metric"], xlabel="imbalance", ylim=(0, None))
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def plot_differences(tables: dict, file: Path) -> None:
    """The mean paired difference of each variant from the reference, with its 95% interval, level by level."""
    names = list(dict.fromkeys(test["level"] for test in tables["tests"]))
    figure, panels = pyplot.subplots(
        1, len(names), figsize=(3 * len(names), 0.5 * len(tables["variants"]) + 1.2), sharey=True, layout="constrained"
    )
    for axes, name in zip([panels] if len(names) == 1 else panels, names, strict=True):
        tests = [test for test in tables["tests"] if test["level"] == name][::-1]
        for y, test in enumerate(tests):
            if test["pairs"] > 1:
                axes.plot([test["low"], test["high"]], [y, y], color="tab:blue", linewidth=1.5)
            axes.plot(test["difference"], y, "o", color="tab:blue", markersize=4)
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_yticks(range(len(tests)), [test["variant"] for test in tests])
        axes.set_title(name, fontsize="small")
    figure.supxlabel(f"{tables['metric']} minus that of {tables['tests'][0]['against']}", fontsize="small")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
