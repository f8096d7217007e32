"""results.csv, a row a finished run, and the tables that follow from it."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path

from detector.core.errors import UserError
from detector.core.files import csv_line, write_text
from detector.lab.study.plan import Run, Study
from detector.lab.study.statistics import holm, mean_interval, paired_p_value

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
COLUMNS = ("level", "variant", "seed", *METRICS, "seconds", "fingerprint", "error")
Row = dict[str, str]


def read_results(file: Path) -> list[Row]:
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def write_results(file: Path, rows: Iterable[Row]) -> None:
    """The whole file anew, so that it never holds half a row."""
    lines = [COLUMNS, *([row[column] for column in COLUMNS] for row in rows)]
    write_text(file, "".join(map(csv_line, lines)))


def result_row(run: Run, metrics: dict[str, float], seconds: float, error: str = "") -> Row:
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
    return (row["level"], row["variant"], row["seed"]) == (run.level, run.variant, str(run.seed))


def pending(runs: list[Run], rows: list[Row]) -> list[Run]:
    """The runs without a result; those that failed are tried again. Raises UserError where a result is of the same name
    and another config."""
    left = []
    for run in runs:
        row = next((row for row in rows if is_row_of(row, run)), None)
        if row is not None and row["fingerprint"] != run.fingerprint:
            raise UserError(
                f"results.csv has {run.level!r}, {run.variant!r}, seed {run.seed} from another config",
                "give the changed study a folder of its own with --out, or delete the row",
            )
        if row is None or row["error"]:
            left.append(run)
    return left


def make_tables(study: Study, rows: list[Row]) -> dict:
    """`rows`: mean and 95% interval over the seeds, for each level and variant. `tests`: for each level, and over all
    levels, the mean difference of each variant from `study.against` on the same level and seed with its 95% interval,
    and the p-value of the paired t-test, plain and after Holm. The pairs over all levels are
    not independent where a remedy's merit depends on the level: read that test as a summary."""
    values: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row[study.metric]:
            values.setdefault((row["level"], row["variant"]), {})[int(row["seed"])] = float(row[study.metric])
    means, tests = [], []
    for level in study.levels:
        for variant in study.variants:
            own = values.get((level, variant), {})
            interval = mean_interval(list(own.values()))
            means.append(
                {"variant": variant, "level": level, "n": interval.n, "seeds": len(study.seeds)}
                | {"mean": interval.mean, "low": interval.low, "high": interval.high}
            )
    for name, levels in [(level, [level]) for level in study.levels] + [("all levels", list(study.levels))]:
        found = []
        for variant in study.variants:
            if variant == study.against:
                continue
            pairs = [
                (own, values[level, study.against][seed])
                for level in levels
                for seed, own in values.get((level, variant), {}).items()
                if seed in values.get((level, study.against), {})
            ]
            ours, theirs = zip(*pairs, strict=True) if pairs else ((), ())
            interval = mean_interval([a - b for a, b in pairs])
            found.append(
                {"level": name, "variant": variant, "against": study.against, "pairs": len(pairs)}
                | {"difference": interval.mean, "low": interval.low, "high": interval.high}
                | {"p": paired_p_value(ours, theirs)}
            )
        adjusted = holm([float(test["p"]) for test in found])
        tests += [test | {"p_holm": p} for test, p in zip(found, adjusted, strict=True)]
    return {
        "metric": study.metric,
        "levels": list(study.levels),
        "variants": list(study.variants),
        "rows": means,
        "tests": tests,
    }


def with_nan(tables: dict) -> dict:
    """Tables as tables.json holds them, where null is NaN."""
    return tables | {
        kind: [{key: math.nan if value is None else value for key, value in row.items()} for row in tables[kind]]
        for kind in ("rows", "tests")
    }


def mean_cells(tables: dict) -> tuple[list[str], list[list[str]]]:
    """Columns and texts: a row a variant, a column a level, `mean ± half the interval`."""
    by_cell = {(row["variant"], row["level"]): row for row in tables["rows"]}
    rows = [[v, *(_mean_text(by_cell[v, level]) for level in tables["levels"])] for v in tables["variants"]]
    return [tables["metric"], *tables["levels"]], rows


def _mean_text(row: dict) -> str:
    if row["n"] == 0:
        return "none"
    spread = "" if math.isnan(row["low"]) else f" ± {row['mean'] - row['low']:.3f}"
    return f"{row['mean']:.3f}{spread}" + (f" ({row['n']} of {row['seeds']} runs)" if row["n"] < row["seeds"] else "")


def difference_cells(tables: dict) -> tuple[list[str], list[list[str]]]:
    """Columns and texts: a row a paired test."""
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
