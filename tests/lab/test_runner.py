import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import environment, run_command, start_command
from tiny import TINY
from tools_run import run_tool

import detector.build  # noqa: F401  (registers the parts that a config names)
from detector.config import load_config
from detector.core.errors import UserError
from detector.engine.claim import claim
from detector.lab.study.plan import Study, make_runs
from detector.lab.study.results import COLUMNS, read_results, write_results
from detector.lab.study.runner import run_all

REPO = Path(__file__).parents[2]
STUDY = Study(
    config="retina_focal.yaml",
    levels={"one": {}},
    variants={"a": {}, "b": {"loss": {"classification": "ghm_c"}}},
    seeds=[0, 1],
    against="a",
)
# A process that writes the files of a training run. Variant b with seed 1 fails the first time.
PROCESS = """
import json, pathlib, sys
config, out = map(pathlib.Path, sys.argv[1:])
(out / "checkpoints").mkdir()
(out / "checkpoints" / "last.pt").write_bytes(b"weights")
if out.name == "one-b-1" and not (out / "tried").exists():
    (out / "tried").touch()
    sys.exit("error: the loss is not finite")
(out / "metrics.json").write_text(json.dumps({"AP": 0.25, "AP50": None, "per_class": {}}))
"""


def command(config: Path, out: Path) -> list[str]:
    return [sys.executable, "-c", PROCESS, str(config), str(out)]


def test_a_failed_run_has_its_error_in_the_results_and_is_tried_again(tmp_path):
    runs = make_runs(STUDY)
    run_all(runs, tmp_path, jobs=2, command=command, keep_checkpoints=False)
    rows = {(r["variant"], r["seed"]): r for r in read_results(tmp_path / "results.csv")}
    assert len(rows) == 4
    assert rows["b", "1"]["error"] == "error: the loss is not finite" and rows["b", "1"]["AP"] == ""
    assert rows["a", "0"]["AP"] == "0.25" and rows["a", "0"]["AP50"] == "" and not rows["a", "0"]["error"]
    assert not list(tmp_path.glob("runs/one-a-*/checkpoints")), "54 runs' checkpoints would fill a disk"

    (tmp_path / "runs/one-b-1/checkpoints/last.pt").unlink()
    (tmp_path / "runs/one-b-1/checkpoints").rmdir()
    run_all(runs, tmp_path, jobs=2, command=command, keep_checkpoints=True)
    rows = read_results(tmp_path / "results.csv")
    assert len(rows) == 4 and not any(row["error"] for row in rows)
    assert (tmp_path / "runs/one-b-1/checkpoints/last.pt").exists()


def test_a_changed_study_does_not_mix_with_the_old_results(tmp_path):
    run_all(make_runs(STUDY), tmp_path, jobs=4, command=command, keep_checkpoints=False)
    before = (tmp_path / "results.csv").read_bytes()
    changed = STUDY.model_copy(update={"common": {"train": {"epochs": 7}}})
    with pytest.raises(UserError, match="results.csv"):
        run_all(make_runs(changed), tmp_path, jobs=4, command=command, keep_checkpoints=False)
    assert (tmp_path / "results.csv").read_bytes() == before


KILLED = """
import sys
from pathlib import Path
import detector.build
from detector.lab.study.runner import run_all
from detector.lab.study.plan import Study, make_runs

wait = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1], 'pid').write_text(str(os.getpid())); time.sleep(300)"
command = lambda config, out: [sys.executable, "-c", wait, str(out)]
study = Study.model_validate_json(sys.argv[2])
run_all(make_runs(study), Path(sys.argv[1]), jobs=2, command=command, keep_checkpoints=False)
"""


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def is_running(pid: str) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()  # Z: the process has ended
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux, processes end with their parent")
def test_kill_9_of_a_study_ends_its_runs(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), STUDY.model_dump_json()]
    study = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)
    files = [tmp_path / f"runs/one-{variant}-0/pid" for variant in "ab"]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    processes = [file.read_text() for file in files]
    assert all(map(is_running, processes))
    study.kill()
    study.communicate()
    wait_for(lambda: not any(map(is_running, processes)))


TINY_STUDY = """
config: CONFIG
common: {train: {epochs: 1}}
levels: {few: {}}
variants:
  focal: {}
  ghm: {loss: {classification: ghm_c}}
seeds: [0]
against: focal
"""

TINY_SELECTION = TINY_STUDY.replace("ghm_c}}", "ghm_c}, grid: {train.lr: [0.01, 0.001]}}") + "select: {split: 0.5}"


@pytest.mark.slow
def test_a_refused_study_does_not_change_the_files_of_the_folder(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "study.yaml").write_text(TINY_STUDY.replace("CONFIG", str(tmp_path / "tiny.yaml")))
    options = ["--cfg", str(tmp_path / "study.yaml"), "--jobs", "1", "--out", str(tmp_path / "out")]

    def assert_refused(code: int, errors: str) -> None:
        assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1
        assert (tmp_path / "out/study.yaml").read_text() == "of the first study"

    with claim(tmp_path / "out"):  # this process claims the folder
        (tmp_path / "out/study.yaml").write_text("of the first study")
        ended = run_command(tmp_path, "study", *options)
        assert_refused(ended.code, ended.errors)
    row = {"level": "few", "variant": "ghm", "seed": "0", "fingerprint": "another config"}
    write_results(tmp_path / "out/results.csv", [dict.fromkeys(COLUMNS, "") | row])
    assert_refused(run_tool("study", *options), capsys.readouterr().err)


@pytest.mark.slow
def test_an_interrupted_study_has_the_numbers_of_an_uninterrupted_study(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "study.yaml").write_text(TINY_SELECTION.replace("CONFIG", str(tmp_path / "tiny.yaml")))
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # other tests need the cores
    # both studies have 1 job, because the number of jobs sets the number of threads and the order of sums
    options = ["--cfg", str(tmp_path / "study.yaml"), "--jobs", "1", "--out"]

    assert run_tool("study", *options, tmp_path / "uninterrupted") == 0

    # the selection runs of both studies are the same
    shutil.copytree(tmp_path / "uninterrupted/selection", tmp_path / "interrupted/selection")
    results = tmp_path / "interrupted/results.csv"
    study = start_command(tmp_path, "study", *options, tmp_path / "interrupted")
    wait_for(results.exists)
    study.send_signal(signal.SIGTERM)
    assert study.end().code == 143
    assert len(read_results(results)) == 1
    assert run_tool("study", *options, tmp_path / "interrupted") == 0

    tables = [json.loads((tmp_path / out / "tables.json").read_text()) for out in ("uninterrupted", "interrupted")]
    assert tables[0] == tables[1]
    assert {row["n"] for row in tables[0]["rows"]} == {1}
    (chosen,) = [row["settings"] for row in tables[0]["selection"] if row["chosen"]]
    config = load_config(str(tmp_path / "interrupted/configs/few-ghm-0.yaml"))
    assert chosen == f"train.lr={config.train.lr}" and config.data.split is None
    for name in ("levels.png", "differences.png", "tables.md", "study.yaml", "selection.csv"):
        assert (tmp_path / "uninterrupted" / name).stat().st_size > 0
