"""The file results.csv, which has a row for each finished run, and the tables that are computed from the rows."""

import csv
import math
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from statistics import fmean

from detector.core.errors import UserError
from detector.core.files import csv_line, write_text
from detector.lab.study.plan import METRICS, Run, Study
from detector.lab.study.statistics import holm, mean_interval, paired_p_value

COLUMNS = ("level", "variant", "seed", *METRICS, "seconds", "fingerprint", "error")
Row = dict[str, str]


def read_results(file: Path) -> list[Row]:
    """Return the rows of results.csv; no rows where the file does not exist."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def write_results(file: Path, rows: Iterable[Row]) -> None:
    """Replace the file, so that the file never has an incomplete row.

    Args:
        file: results.csv.
        rows: all rows.
    """
    lines = [COLUMNS, *([row[column] for column in COLUMNS] for row in rows)]
    write_text(file, "".join(map(csv_line, lines)))


def result_row(run: Run, metrics: dict[str, float], seconds: float, error: str = "") -> Row:
    """Return the row of a finished run.

    Args:
        run: the run.
        metrics: the metrics by name. A metric that is NaN or missing gives an empty cell.
        seconds: the duration of the run.
        error: the error message of a run that failed.
    """
    numbers = {name: metrics.get(name, math.nan) for name in METRICS}
    return {
        "level": run.level,
        "variant": run.variant,
        "seed": str(run.seed),
        **{name: "" if math.isnan(value) else repr(value) for name, value in numbers.items()},
        "seconds": f"{seconds:.1f}",
        "fingerprint": run.fingerprint,
        "error": error,
    }


def is_row_of(row: Row, run: Run) -> bool:
    """Return whether the row has the level, variant and seed of the run.

    Args:
        row: a row of results.csv.
        run: the run.
    """
    return (row["level"], row["variant"], row["seed"]) == (run.level, run.variant, str(run.seed))


def pending(runs: list[Run], file: Path) -> list[Run]:
    """Return the runs without a result, and the runs that failed, which are tried again.

    Args:
        runs: all runs of the study.
        file: results.csv.

    Raises:
        UserError: a row has the level, variant and seed of a run, but another config.
    """
    rows = read_results(file)
    if changed := with_other_config(runs, rows):
        run = changed[0]
        raise UserError(
            f"{file}: the result of level {run.level!r}, variant {run.variant!r}, seed {run.seed} has another config",
            "choose a new folder for the changed study with --out, or delete the row",
        )
    ended = [row for row in rows if not row["error"]]
    return [run for run in runs if not any(is_row_of(row, run) for row in ended)]


def with_other_config(runs: list[Run], rows: list[Row]) -> list[Run]:
    """Return the runs whose row has another config than the run.

    Args:
        runs: all runs of the study.
        rows: the rows of results.csv.
    """
    return [run for run in runs for row in rows if is_row_of(row, run) and row["fingerprint"] != run.fingerprint]


def make_tables(study: Study, rows: list[Row]) -> dict:
    """Return the tables of a study: `metric`, `levels`, `variants`, `rows` and `tests`.

    `rows` has the mean and the 95% interval over the seeds for each level and variant. `tests` has the comparison of
    each variant with `study.against`, for each level and, if there are several levels, for all levels together. A
    comparison pairs the values of equal seeds. It has the mean difference with its 95% interval, and the p-value of the
    paired t-test. For all levels together, the value of a seed is the mean over the levels, so a seed gives one pair.
    `p_holm` is the p-value that Holm's method adjusts over the variants of the same level. The intervals are not
    adjusted.

    Args:
        study: the study.
        rows: the rows of results.csv.
    """
    values: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row[study.metric] and int(row["seed"]) in study.seeds:
            values.setdefault((row["level"], row["variant"]), {})[int(row["seed"])] = float(row[study.metric])
    means, tests = [], []
    for level in study.levels:
        for variant in study.variants:
            interval = mean_interval(list(values.get((level, variant), {}).values()))
            means.append(
                {"variant": variant, "level": level, "n": interval.n, "seeds": len(study.seeds)}
                | {"mean": interval.mean, "low": interval.low, "high": interval.high}
            )
    groups = {level: [level] for level in study.levels}
    if len(study.levels) > 1:
        groups["all levels"] = list(study.levels)
    for name, levels in groups.items():
        tests_of_level = []
        for variant in study.variants:
            if variant == study.against:
                continue
            cells = list(product(levels, (variant, study.against)))
            seeds = [seed for seed in study.seeds if all(seed in values.get(cell, {}) for cell in cells)]
            of_variant, of_reference = (
                [fmean(values[level, name][seed] for level in levels) for seed in seeds]
                for name in (variant, study.against)
            )
            interval = mean_interval([a - b for a, b in zip(of_variant, of_reference, strict=True)])
            tests_of_level.append(
                {"level": name, "variant": variant, "against": study.against, "pairs": len(seeds)}
                | {"difference": interval.mean, "low": interval.low, "high": interval.high}
                | {"p": paired_p_value(of_variant, of_reference)}
            )
        adjusted = holm([float(test["p"]) for test in tests_of_level])
        tests += [test | {"p_holm": p} for test, p in zip(tests_of_level, adjusted, strict=True)]
    return {
        "metric": study.metric,
        "levels": list(study.levels),
        "variants": list(study.variants),
        "rows": means,
        "tests": tests,
    }


def with_nan(tables: dict) -> dict:
    """Return the tables of tables.json with NaN for null."""
    return tables | {
        kind: [{key: math.nan if value is None else value for key, value in row.items()} for row in tables[kind]]
        for kind in ("rows", "tests", "selection")
        if kind in tables
    }


def mean_cells(tables: dict) -> tuple[list[str], list[list[str]]]:
    """Return the column names and the cells of `rows`, with a row for each variant and a column for each level.

    A cell is `mean ± half of the interval`.
    """
    by_cell = {(row["variant"], row["level"]): row for row in tables["rows"]}
    rows = [[v, *(mean_text(by_cell[v, level]) for level in tables["levels"])] for v in tables["variants"]]
    return [tables["metric"], *tables["levels"]], rows


def mean_text(row: dict) -> str:
    """Return `mean ± half of the interval` of a row, and the number of runs where runs are missing."""
    if row["n"] == 0:
        return "none"
    spread = "" if math.isnan(row["low"]) else f" ± {row['mean'] - row['low']:.3f}"
    return f"{row['mean']:.3f}{spread}" + (f" ({row['n']} of {row['seeds']} runs)" if row["n"] < row["seeds"] else "")


def difference_cells(tables: dict) -> tuple[list[str], list[list[str]]]:
    """Return the column names and the cells of `tests`, with a row for each paired test."""
    columns = ["level", "variant", f"{tables['metric']} minus that of {tables['tests'][0]['against']}", "95% interval"]
    rows = [
        [t["level"], t["variant"], *_difference_texts(t), f"{t['p']:.2g}", f"{t['p_holm']:.2g}", str(t["pairs"])]
        for t in tables["tests"]
    ]
    return [*columns, "p", "p (Holm)", "pairs"], rows


def _difference_texts(test: dict) -> tuple[str, str]:
    if test["pairs"] == 0:
        return "none", "none"
    interval = "none" if math.isnan(test["low"]) else f"{test['low']:+.3f} to {test['high']:+.3f}"
    return f"{test['difference']:+.3f}", interval
