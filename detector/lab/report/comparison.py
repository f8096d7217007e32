"""The comparison of several runs: a sentence, a table of metrics, and where the configs differ."""

import math
from collections.abc import Sequence

from detector.core.wording import number, short
from detector.lab.report.sources import Source

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


def best_run(runs: Sequence[Source]) -> str:
    """Name the run of the highest AP and its lead over the next run. The text is empty where fewer than two have AP."""
    ranked = sorted(
        ((run.metrics["AP"], run.name) for run in runs if run.metrics and not math.isnan(run.metrics["AP"])),
        key=lambda item: -item[0],
    )
    if len(ranked) < 2:
        return ""
    (first, name), (second, next_name), *_ = ranked
    if number(first) == number(second):
        return f"{short(name)} and {short(next_name)} have the highest AP, {number(first)}."
    return (
        f"{short(name)} has the highest AP, {number(first)}: {number(first - second)} more than {short(next_name)} "
        f"({number(second)})."
    )


def metric_rows(runs: Sequence[Source]) -> list[list[tuple[str, bool]]]:
    """Return a row for each run: its name, then each of METRICS as a text, and whether it is the best of the runs."""
    columns = []
    for key in METRICS:
        texts = [number(run.metrics.numbers.get(key) if run.metrics else None) for run in runs]
        best = max((text for text in texts if text != "none"), default=None)
        columns.append([(text, text == best and len(runs) > 1) for text in texts])
    names = [(run.name, False) for run in runs]
    return [list(row) for row in zip(names, *columns, strict=True)]


def config_differences(configs: Sequence[dict]) -> list[list[str]]:
    """Return the keys in which configs differ, each with the value of every config."""
    flat = [_flatten(config) for config in configs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = {key: [str(values.get(key, "none")) for values in flat] for key in keys}
    return [[key, *texts] for key, texts in rows.items() if len(set(texts)) > 1]


def _flatten(values: object, key: str = "") -> dict[str, object]:
    if not isinstance(values, dict) or not values:
        return {key: values}
    return {k: v for name, value in values.items() for k, v in _flatten(value, f"{key}.{name}".strip(".")).items()}
