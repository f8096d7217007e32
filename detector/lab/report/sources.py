"""The files in a folder for a report."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detector.core.config_files import read_mapping
from detector.core.errors import UserError
from detector.core.files import read_json
from detector.core.json_records import RecordType, read_record
from detector.evaluation.anatomy_result import Anatomy
from detector.evaluation.metrics import EVALUATE, Metrics
from detector.imbalance.census_result import CENSUS, Census
from detector.imbalance.probe_result import PROBE, ProbeResult
from detector.lab.study.results import with_nan

KINDS = ("metrics.json", "metrics.csv", "census.json", "probe.json", "anatomy.json", "tables.json")
SHARED = ("census", "probe", "anatomy")  # the parts that a run may take from another folder


@dataclass(frozen=True, slots=True)
class Source:
    """A folder's files. A part is None or empty where the folder lacks it.

    name: the folder's name.
    folder: the folder.
    files: the file of each part, by the file's name.
    config: the values of config.yaml.
    config_text: config.yaml.
    steps: the rows of metrics.csv, numbers by column, without empty cells.
    parts: the rows of parts.csv, where `part` is a text.
    study: tables.json.
    """

    name: str
    folder: Path
    files: dict[str, Path]
    config: dict
    config_text: str
    metrics: Metrics | None
    steps: list[dict[str, float]]
    parts: list[dict]
    census: Census | None
    probe: ProbeResult | None
    anatomy: Anatomy | None
    study: dict | None

    def setting(self, key: str) -> Any:
        """Return the value at a dotted key of config.yaml, None where the config lacks it."""
        value: Any = self.config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    @property
    def is_run(self) -> bool:
        """Whether the folder has the results of a training or of an evaluation."""
        return self.metrics is not None or bool(self.steps)


def read_source(folder: Path) -> Source:
    """Read the files in `folder` and, where it lacks a file, in the folders directly below it.

    Raises:
        UserError: the folder has no file for a report, or a file is not what its name says.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "give the folder of a run, a probe, a census or a study")
    files = {name: file for name in (*KINDS, "parts.csv", "config.yaml") if (file := _find(folder, name))}
    if not any(name in files for name in KINDS):
        raise UserError(f"{folder}: nothing to report", f"give a folder with {', '.join(KINDS)}")
    config_text = files["config.yaml"].read_text(encoding="utf-8") if "config.yaml" in files else ""
    return Source(
        name=_name(folder.resolve()),
        folder=folder,
        files=files,
        config=read_mapping(config_text, str(files.get("config.yaml"))),
        config_text=config_text,
        metrics=_record(files.get("metrics.json"), Metrics, EVALUATE),
        steps=_rows(files.get("metrics.csv")),
        parts=_rows(files.get("parts.csv")),
        census=_record(files.get("census.json"), Census, CENSUS),
        probe=_record(files.get("probe.json"), ProbeResult, PROBE),
        anatomy=_record(files.get("anatomy.json"), Anatomy, EVALUATE),
        study=with_nan(tables) if (tables := _json(files.get("tables.json"))) else None,
    )


def join(sources: Sequence[Source]) -> list[Source]:
    """Give a single run the census, the probe and the anatomy of the folders that are no run.

    They replace what the run has in the folders below it. A second census stays a source, and so does a study. With
    several runs, and without a run, all sources stay as they are.
    """
    runs = [source for source in sources if source.is_run]
    if len(runs) != 1:
        return list(sources)
    (run,), separate, taken = runs, [], set()
    for source in sources:
        if source is runs[0]:
            continue
        given = {part: value for part in SHARED if (value := getattr(source, part)) is not None}
        if source.study or taken & given.keys():
            separate.append(source)
            continue
        taken |= given.keys()
        files = {f"{part}.json": source.files[f"{part}.json"] for part in given}
        run = replace(run, files=run.files | files, **given)
    return [run, *separate]


def _name(folder: Path) -> str:
    """Return the folder's name. A folder named by its time gets the name above, which is that of the config."""
    return f"{folder.parent.name}/{folder.name}" if re.match(r"\d{4}-\d\d-\d\d", folder.name) else folder.name


def _find(folder: Path, name: str) -> Path | None:
    """Return the file in `folder`, else in a folder below: that of the validation split before others."""
    if (folder / name).is_file():
        return folder / name
    below = sorted(folder.glob(f"*/{name}"), key=lambda file: (not file.parent.name.endswith("_val"), file))
    return below[0] if below else None


def _json(file: Path | None) -> dict | None:
    if file is None:
        return None
    try:
        values = read_json(file)
    except ValueError as error:
        raise UserError(f"{file}: no JSON ({error})", "write it again with the tool that made it") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: should hold an object, not {type(values).__name__}")
    return values


def _record(file: Path | None, kind: type[RecordType], command: str) -> RecordType | None:
    return None if file is None else read_record(file, kind, command)


def _rows(file: Path | None) -> list[dict]:
    if file is None:
        return []
    rows = []
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            try:
                rows.append({k: v if k == "part" else float(v) for k, v in row.items() if v})
            except ValueError:  # a number that is being written
                break
    return rows
