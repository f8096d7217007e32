"""Loggers of real runs: a logger of another package, and no logger."""

import csv
import json
import sys
from pathlib import Path

import pytest
from tiny import TINY, tiny_config
from tools_run import run_tool

from detector.core.errors import UserError
from detector.engine.loggers import LOGGERS

OUTSIDE = """
import json

from detector.engine.loggers import LOGGERS


@LOGGERS.register("json_lines")
class JsonLines:
    def __init__(self, folder, first_step, *, name: str = "lines"):
        self.file = (folder / f"{name}.jsonl").open("w")
        self.log(first_step, {})

    def log(self, step, values):
        self.file.write(json.dumps([step, values]) + chr(10))

    def close(self):
        self.file.close()
"""
NUM_STEPS = 6  # of an epoch


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """Return the arguments of a training in the folder `run`."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY, encoding="utf-8")
    return ["--cfg", "./tiny.yaml", "--out", "run", "train.log_every=4"]


def lines_of(name: str) -> tuple[list, list]:
    """Return the first line of a JsonLines file, and the others."""
    first, *others = map(json.loads, Path(f"run/{name}.jsonl").read_text().splitlines())
    return first, others


@pytest.mark.slow
def test_a_logger_of_another_package(options: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Path("outside_logger.py").write_text(OUTSIDE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "outside_logger", raising=False)
    monkeypatch.setattr(LOGGERS, "_entries", dict(LOGGERS._entries))
    options.append("imports=[outside_logger]")
    assert run_tool("train", *options, "train.epochs=1", "train.loggers=[csv, {type: json_lines, name: a}]") == 0
    first, (*steps, evaluation) = lines_of("a")
    with Path("run/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert first == [0, {}] and [step for step, _ in steps] == list(range(NUM_STEPS))
    for row, (step, values) in zip(rows, steps, strict=True):
        of_step = {name: "" if value is None else str(value) for name, value in values.items() if "/" not in name}
        assert row == {"step": str(step)} | of_step
    assert evaluation[0] == NUM_STEPS
    assert evaluation[1]["val/AP"] == json.loads(Path("run/metrics.json").read_text())["AP"]

    resumed = ("--resume", "auto", "train.epochs=2", "train.loggers=[json_lines]")
    assert run_tool("train", *options, *resumed) == 0
    first, (*steps, evaluation) = lines_of("lines")
    assert first == [NUM_STEPS, {}] and [step for step, _ in steps] == list(range(NUM_STEPS, 2 * NUM_STEPS))
    assert len(Path("run/metrics.csv").read_text().splitlines()) == 1 + NUM_STEPS


@pytest.mark.slow
def test_a_run_without_loggers_writes_the_other_files(options: list, capsys: pytest.CaptureFixture):
    options += ["train.epochs=1", "train.loggers=[]"]
    assert run_tool("train", *options) == 0
    names = {path.name for path in Path("run").iterdir()}
    files = {"config.yaml", "metrics.json", "detections.json", "batch_0.jpg", "labels.png"}
    assert names == files | {"checkpoints", "pictures"}
    assert run_tool("report", "run", "--out", "report.html") == 0
    capsys.readouterr()
    assert run_tool("train", *options) == 2  # the folder belongs to the first run
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("value", ["csv", "[csvv]", "[csv, csv]", "[{type: csv, name: a}]", "null"])
def test_a_wrong_list_of_loggers_is_refused(value: str, tmp_path: Path):
    with pytest.raises(UserError, match=r"^train\.loggers"):
        tiny_config(tmp_path, f"train.loggers={value}")
