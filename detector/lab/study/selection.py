"""The selection: runs on parts of the training set choose the values of each variant's grid."""

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path
from statistics import fmean

from detector.core.config_files import read_values
from detector.core.errors import UserError
from detector.core.files import csv_line, write_text
from detector.core.overrides import nested
from detector.lab.study.plan import Cell, Combination, Run, Study, make_run
from detector.lab.study.results import Row, mean_text
from detector.lab.study.statistics import mean_interval

log = logging.getLogger(__name__)

COLUMNS = ("level", "variant", "settings", "mean", "n", "seeds", "chosen")


@dataclass(frozen=True, slots=True)
class Score:
    """The results of a combination in the selection runs of a level and variant.

    Attributes:
        has_ended: whether a run of each seed has ended. A run can end with an error.
        values: the metric of the runs that have the metric, in the order of the seeds.
    """

    level: str
    variant: str
    combination: Combination
    has_ended: bool
    values: list[float]


def make_selection_runs(study: Study) -> list[Run]:
    """Return the selection runs, seed by seed; no runs for a study without `select`.

    In a selection run, data.split divides data.train, and data.val is null. So the run does not read the validation
    set of the study. `variant` of a run also names the values of the grid.

    Raises:
        UserError: the config of a combination is wrong or divides its training set, or two combinations of a variant
            have the same config.
    """
    if study.select is None:
        return []
    base, runs = read_values(study.config), []
    divided = {"data": {"val": None, "split": study.select.split}}
    for seed, (level, variant) in product(study.select.seeds, study.cells()):
        layers = [base, *study.changes(level, variant)]
        text_by_config: dict[str, str] = {}
        for combination in combinations(study, variant):
            where, values = f"level {level!r}, variant {variant!r}", nested(combination)
            if make_run(level, variant, seed, [*layers, values]).config.data.split is not None:
                raise UserError(
                    f"{where}: data.split divides data.train, so the selection runs would read the validation images",
                    "set data.val, and data.split=null",
                )
            run = make_run(level, variant, seed, [*layers, study.select.common, values, divided])
            text = settings_text(combination)
            if (other := text_by_config.get(run.fingerprint)) is not None:
                raise UserError(
                    f"{where}: the selection runs of {other} and {text} have the same config",
                    "remove a value from the grid",
                )
            text_by_config[run.fingerprint] = text
            runs.append(replace(run, variant=_run_variant(variant, combination), name=f"{run.name}-{run.fingerprint}"))
    return runs


def combinations(study: Study, variant: str) -> list[Combination]:
    """Return all combinations of a variant's grid, the last key varies fastest; none without a grid.

    Args:
        study: the study.
        variant: the name of the variant.
    """
    grid = study.grid(variant)
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())] if grid else []


def settings_text(combination: Combination) -> str:
    """Return the combination as `key=value, key=value`."""
    return ", ".join(f"{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in combination.items())


def _run_variant(variant: str, combination: Combination) -> str:
    return f"{variant}: {settings_text(combination)}"


def read_scores(study: Study, rows: list[Row]) -> list[Score]:
    """Return the score of each combination, level by level and variant by variant.

    Args:
        study: the study.
        rows: the rows of the selection's results.csv.
    """
    row_by_run = {(row["level"], row["variant"], int(row["seed"])): row for row in rows}
    seeds = study.select.seeds if study.select else []
    scores = []
    for level, variant in study.cells():
        for combination in combinations(study, variant):
            name = _run_variant(variant, combination)
            ended = [row for seed in seeds if (row := row_by_run.get((level, name, seed)))]
            values = [float(row[study.metric]) for row in ended if row[study.metric]]
            scores.append(Score(level, variant, combination, len(ended) == len(seeds), values))
    return scores


def choose(study: Study, rows: list[Row]) -> dict[Cell, Combination]:
    """Return the combination with the highest mean metric for each level and variant; the first of equal combinations.

    A level and variant has no choice before all its selection runs have ended. A combination without the metric in a
    run, for example because the run failed, is not chosen.

    Args:
        study: the study.
        rows: the rows of the selection's results.csv.
    """
    num_seeds = len(study.select.seeds) if study.select else 0
    choices = {}
    for cell, group in groupby(read_scores(study, rows), key=lambda score: (score.level, score.variant)):
        scores = list(group)
        complete = [score for score in scores if len(score.values) == num_seeds]
        if complete and all(score.has_ended for score in scores):
            choices[cell] = max(complete, key=lambda score: fmean(score.values)).combination
    return choices


def log_choices(study: Study, choices: Mapping[Cell, Combination]) -> None:
    """Log the chosen combination of each level and variant, and a warning where no combination can be chosen.

    Args:
        study: the study.
        choices: the result of `choose`, after all selection runs have ended.
    """
    for level, variant in study.cells():
        if (level, variant) in choices:
            log.info("level %r, variant %r: chosen %s", level, variant, settings_text(choices[level, variant]))
        elif study.grid(variant):
            log.warning(
                "level %r, variant %r has no runs: no combination has %s in all selection runs",
                level,
                variant,
                study.metric,
            )


def selection_rows(study: Study, rows: list[Row]) -> list[dict]:
    """Return the table of all scores, with the mean and the 95% interval over the seeds of the selection.

    Args:
        study: the study.
        rows: the rows of the selection's results.csv.
    """
    assert study.select is not None
    choices = choose(study, rows)
    table = []
    for score in read_scores(study, rows):
        interval = mean_interval(score.values)
        table.append(
            {"variant": score.variant, "settings": settings_text(score.combination), "level": score.level}
            | {"n": interval.n, "seeds": len(study.select.seeds)}
            | {"mean": interval.mean, "low": interval.low, "high": interval.high}
            | {"chosen": choices.get((score.level, score.variant)) == score.combination}
        )
    return table


def write_selection(file: Path, table: Iterable[dict]) -> None:
    """Write the table as CSV.

    Args:
        file: the file.
        table: the result of `selection_rows`.
    """
    texts = [row | {"mean": "" if math.isnan(row["mean"]) else repr(row["mean"])} for row in table]
    write_text(file, "".join(map(csv_line, [COLUMNS, *([row[column] for column in COLUMNS] for row in texts)])))


def selection_cells(tables: dict) -> tuple[list[str], list[list[str]]]:
    """Return the column names and the cells of `selection`, with a row for each combination, a column for each level.

    A cell is the mean of the metric, and `chosen` for the chosen combination.
    """
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in tables["selection"]:
        text = f"{mean_text(row)}, chosen" if row["chosen"] else mean_text(row)
        cells.setdefault((row["variant"], row["settings"]), {})[row["level"]] = text
    columns = ["variant", f"settings, {tables['metric']} in the selection runs", *tables["levels"]]
    return columns, [[*key, *(by_level[level] for level in tables["levels"])] for key, by_level in cells.items()]
