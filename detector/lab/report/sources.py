"""What a folder holds for a report."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from detector.core.errors import UserError
from detector.core.files import read_json
from detector.core.json_records import RecordType, read_record
from detector.evaluation.anatomy_result import Anatomy
from detector.evaluation.metrics import EVALUATE, Metrics
from detector.imbalance.census_result import CENSUS, Census
from detector.imbalance.probe_result import PROBE, ProbeResult
from detector.lab.study.results import with_nan

KINDS = ("metrics.json", "metrics.csv", "census.json", "probe.json", "anatomy.json", "tables.json")
MAX_PICTURES = 6


@dataclass(frozen=True, slots=True)
class Source:
    """One folder: each part is None or empty where the folder lacks it. steps: the rows of metrics.csv, numbers by
    column, without what was not measured; parts: those of parts.csv, where `part` is a text."""

    name: str
    config: dict
    metrics: Metrics | None
    steps: list[dict[str, float]]
    parts: list[dict]
    census: Census | None
    probe: ProbeResult | None
    anatomy: Anatomy | None
    study: dict | None
    pictures: list[Path] = field(default_factory=list)


def read_source(folder: Path) -> Source:
    """The files in `folder` and, where it lacks one, in the folders directly below it. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder", "give a run's, a probe's, a census's or a study's")
    found = {name: _find(folder, name) for name in (*KINDS, "parts.csv", "config.yaml")}
    if not any(found[name] for name in KINDS):
        raise UserError(f"{folder}: nothing to report", f"looked for {', '.join(KINDS)}")
    config = found["config.yaml"]
    return Source(
        name=folder.resolve().name,
        config=yaml.safe_load(config.read_text(encoding="utf-8")) if config else {},
        metrics=_record(found["metrics.json"], Metrics, EVALUATE),
        steps=_rows(found["metrics.csv"]),
        parts=_rows(found["parts.csv"]),
        census=_record(found["census.json"], Census, CENSUS),
        probe=_record(found["probe.json"], ProbeResult, PROBE),
        anatomy=_record(found["anatomy.json"], Anatomy, EVALUATE),
        study=with_nan(tables) if (tables := _json(found["tables.json"])) else None,
        pictures=sorted((folder / "pictures").glob("*.jpg"))[:MAX_PICTURES],
    )


def _find(folder: Path, name: str) -> Path | None:
    own = folder / name
    below = [own] if own.is_file() else sorted(folder.glob(f"*/{name}"))
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
