"""Tests of the choice of the run folder, and of its lock."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ranks import environment, run_command
from tiny import TINY

from detector.core.errors import UserError
from detector.core.files import write_text
from detector.engine.checkpoint import save_checkpoint
from detector.engine.claim import claim, claim_run

REPO = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def choose(name: str, out: Path | None, resume: str | None) -> tuple[Path, Path | None]:
    with claim_run(name, out, resume) as chosen:
        assert chosen[0].is_dir()
        return chosen


def refusal(name: str, out: Path | None, resume: str | None) -> str:
    """Return the line of the UserError."""
    with pytest.raises(UserError) as error:
        choose(name, out, resume)
    assert "\n" not in str(error.value)
    return str(error.value)


def make_run(folder: Path, *, checkpoint: bool = True) -> Path:
    write_text(folder / "metrics.csv", "step,loss\n0,1.0\n")
    if checkpoint:
        save_checkpoint(folder / "checkpoints/last.pt", {})
    return folder


def test_a_new_run_gets_a_new_folder():
    folder, checkpoint = choose("first", None, None)
    assert folder.parent == Path("runs/first") and checkpoint is None
    assert choose("first", Path("mine"), None) == (Path("mine"), None)


def test_two_runs_of_the_same_second_get_two_folders():
    with claim_run("first", None, None) as (first, _), claim_run("first", None, None) as (second, _):
        assert first != second and first.is_dir() and second.is_dir()


@pytest.mark.parametrize("out", [None, Path("a/b/c")])
def test_a_run_that_writes_nothing_leaves_no_folder(here: Path, out: Path | None):
    with pytest.raises(UserError, match="no data"), claim_run("first", out, None):
        raise UserError("no data")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(("existing", "out"), [("mine", Path("mine")), ("runs", None), ("a", Path("a/b/c"))])
def test_an_empty_folder_of_the_user_is_not_removed(here: Path, existing: str, out: Path | None):
    (here / existing).mkdir()
    choose("first", out, None)
    assert list(here.rglob("*")) == [here / existing]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_folder_that_holds_a_run_is_refused(checkpoint: bool):
    make_run(Path("mine"), checkpoint=checkpoint)
    assert "--resume auto" in refusal("first", Path("mine"), None)


def test_resume_auto_takes_the_named_folder_or_the_newest_run_of_the_name(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    assert choose("first", Path("mine"), "auto") == (Path("mine"), None)
    assert choose("first", None, "auto")[1] is None
    assert len(caplog.messages) == 2 and all("first" in line or "mine" in line for line in caplog.messages)
    make_run(Path("mine"))
    assert choose("first", Path("mine"), "auto") == (Path("mine"), Path("mine/checkpoints/last.pt"))
    times = {
        "named_by_out": 1000,
        "2024-02-01_00-00-00": 3000,
        "2024-02-02_00-00-00": 2000,
    }  # of the checkpoints, in seconds
    for run, seconds in times.items():
        os.utime(make_run(Path("runs/first") / run) / "checkpoints/last.pt", (seconds, seconds))
    newest = Path("runs/first/2024-02-01_00-00-00")
    make_run(Path("runs/first/2024-03-01_00-00-00"), checkpoint=False)  # it ended before its first checkpoint
    make_run(Path("runs/second/2025-01-01_00-00-00"))
    caplog.clear()
    assert choose("first", None, "auto") == (newest, newest / "checkpoints/last.pt")
    assert str(newest) in caplog.text
    named = Path("runs/first/named_by_out")
    os.utime(named / "checkpoints/last.pt", (4000, 4000))
    assert choose("first", None, "auto")[0] == named


@pytest.mark.parametrize("names", [["last.pt"], ["last.1.pt"], ["last.pt", "last.2.pt"]])
def test_resume_auto_refuses_a_folder_whose_checkpoints_are_all_damaged(names: list[str]):
    folder = make_run(Path("runs/first/2024-01-31_00-00-00"), checkpoint=False)
    for name in names:
        write_text(folder / "checkpoints" / name, "incomplete")
    for out in (folder, None):
        assert ", ".join(names) in refusal("first", out, "auto")
    assert (folder / "metrics.csv").read_text() == "step,loss\n0,1.0\n"


def test_a_resumed_checkpoint_continues_in_its_run_folder(here: Path, monkeypatch: pytest.MonkeyPatch):
    path = str(make_run(Path("a")) / "checkpoints/last.pt")
    assert choose("first", None, path) == (Path("a"), Path(path))
    assert choose("first", Path("a").resolve(), path)[0] == Path("a").resolve()
    monkeypatch.setenv("HOME", str(here))
    assert choose("first", None, f"~/{path}") == (here / "a", here / path)
    write_text(Path("moved.pt"), "")
    assert choose("first", None, "moved.pt")[0].parent == Path("runs/first")
    line = refusal("first", Path("b"), path)
    assert all(name in line for name in ("--out b", path, "run a"))
    make_run(Path("c"))
    line = refusal("first", Path("c"), "moved.pt")
    assert line.startswith("c: ") and "--resume auto" in line


def test_resume_of_a_folder_names_the_checkpoint_in_it():
    make_run(Path("a"))
    assert "a/checkpoints/last.pt" in refusal("first", None, "a")


# Several processes

HOLD = """
import os, sys
from pathlib import Path
from detector.engine.claim import claim
with claim(Path(sys.argv[1])):
    if os.fork() == 0:  # a loader worker can outlive its process
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    print("claimed", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), text=True, **pipes) as process:
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.stdin.close()


@pytest.mark.slow
def test_a_process_keeps_its_lock_until_it_is_killed(here: Path):
    (here / "mine").mkdir()
    with holder(here / "mine") as process:
        assert str(process.pid) in refusal("first", here / "mine", None)
        process.send_signal(signal.SIGKILL)
        process.wait()
        choose("first", here / "mine", "auto")
    assert list((here / "mine").iterdir()) == []


RACE = """
import sys, time
from pathlib import Path
from detector.engine.claim import claim_run
from detector.core.errors import UserError
print("ready", flush=True)
for line in sys.stdin:
    out = Path(line.strip()) if line.strip() else None
    try:
        with claim_run("first", out, None) as (folder, _):
            (folder / "mine").touch(exist_ok=False)
            print(folder, flush=True)
            time.sleep(1)
    except UserError:
        print("refused", flush=True)
    print("ended", flush=True)
"""


@pytest.mark.slow
def test_of_simultaneous_processes_each_gets_a_separate_folder_or_an_error(here: Path):
    command = [sys.executable, "-c", RACE]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen(command, env=environment(), text=True, **pipes) for _ in range(3)]

    def race(out: str) -> list[str]:
        """Return the result of each process when all processes claim a folder for `out`."""
        for process in processes:
            process.stdin.write(f"{out}\n")
            process.stdin.flush()
        results = [process.stdout.readline().strip() for process in processes]
        assert [process.stdout.readline() for process in processes] == ["ended\n"] * 3
        return results

    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    results = race("")
    assert len({*results}) == 3 and "refused" not in results
    assert sorted(race("mine")) == ["mine", *["refused"] * 2]
    for process in processes:
        process.communicate()
        assert process.returncode == 0


@pytest.mark.slow
def test_a_second_training_with_the_same_out_gets_one_line_and_changes_nothing(here: Path):
    (here / "tiny.yaml").write_text(TINY)
    with claim(here / "run"):
        (here / "run/config.yaml").write_text("of the first")
        second = run_command(here, "train", "--cfg", "./tiny.yaml", "--out", "run", "train.epochs=1")
    assert second.code == 2 and second.errors.count("\n") == 1 and second.errors.startswith("error: run: ")
    assert [path.name for path in (here / "run").iterdir()] == ["config.yaml"]
    assert (here / "run/config.yaml").read_text() == "of the first"
