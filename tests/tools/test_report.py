"""Where the page goes; what it shows is tests/report and test_lab.py."""

from pathlib import Path

import pytest
from tools_run import run_tool

from detector.engine.loggers.csv import StepTable


def test_out_that_is_a_folder_is_one_line_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture):
    row = {"step": 0, "loss": 1.0, "cls_fg": 0.5, "cls_bg": 0.3, "box": 0.2, "fg_gradient_share": 0.5}
    (tmp_path / "run").mkdir()
    StepTable(tmp_path / "run/metrics.csv", 0).add([row])
    (tmp_path / "page").mkdir()
    assert run_tool("report", tmp_path / "run", "--out", tmp_path / "page") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and str(tmp_path / "page") in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page", "run"]
    assert not list((tmp_path / "page").iterdir())
    assert run_tool("report", tmp_path / "run", "--out", tmp_path / "page/report.html") == 0
