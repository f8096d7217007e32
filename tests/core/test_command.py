"""The exit codes and error lines of tools, and the output paths among their arguments."""

import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import environment
from tiny import TINY
from tools_run import run_tool as call_tool

from detector.core.command import next_steps, out_file, out_folder, user_path
from detector.core.errors import UserError
from detector.core.files import write_text

REPO = Path(__file__).parents[2]
ENVIRONMENT = environment(PYTHONUNBUFFERED="")  # an empty text means buffered output
TOOL = "from detector.core.command import run\nfrom detector.core.errors import UserError\n\ndef main():\n"


def run_tool(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run a real tool in a process. `body` is the body of its main function."""
    tool = folder / "tool.py"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    tool.write_text(
        "from detector.core.command import run\nfrom detector.core.errors import UserError\n\n"
        f"def main():\n{lines}\n\nrun(main)\nprint('never reached')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    return subprocess.run(
        [sys.executable, tool],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job of a shell ignores SIGINT
    )


def test_a_main_that_returns_exits_0(tmp_path):
    done = run_tool(tmp_path, "print('done')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_user_error_is_one_line_on_stderr_and_exit_2(tmp_path):
    done = run_tool(tmp_path, r"raise UserError('a.json: bad\nkey', 'remove it')")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: a.json: bad key; remove it\n")


def test_the_error_of_a_loader_worker_is_the_line_after_its_traceback(tmp_path):
    body = r"raise UserError('Caught it in worker 0.\nTraceback:\n  ...\ndetector.core.errors.UserError: a.jpg: cut')"
    assert run_tool(tmp_path, body).stderr == "error: a.jpg: cut\n"


@pytest.mark.parametrize("body", ["raise KeyboardInterrupt", f"import os; os.kill(os.getpid(), {int(signal.SIGINT)})"])
def test_an_interrupt_exits_130_without_a_traceback(tmp_path, body):
    done = run_tool(tmp_path, body)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_bug_keeps_its_traceback(tmp_path):
    done = run_tool(tmp_path, "raise ValueError('a bug')")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("ValueError: a bug\n")


def test_an_interrupted_run_exits_with_its_signal(tmp_path):
    body = "from detector.core.errors import Interrupted\nraise Interrupted(143)"
    assert run_tool(tmp_path, body).returncode == 143


def test_main_may_set_another_exit_code(tmp_path):
    assert run_tool(tmp_path, "raise SystemExit(143)").returncode == 143


# Errors of the operating system


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("import os; os.mkdir('tool.py')", "tool.py"),
        ("open('tool.py/below', 'w')", "tool.py/below"),
        ("open('.', 'w')", "."),
        ("open('x' * 300, 'w')", "x" * 300),
        ("open('nowhere/file')", "nowhere/file"),
        ("raise OSError(28, 'No space left on device')", "no space left on device"),
    ],
)
def test_an_error_of_the_operating_system_is_one_line_that_names_the_file(tmp_path, body, names):
    done = run_tool(tmp_path, f"import os; os.chdir({str(tmp_path)!r})\n{body}")
    assert done.returncode == 2 and names in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "body",
    [
        "for _ in range(10**5): print('a line')",
        "print('a line')",  # the buffer is written when Python ends
        "import sys; print('a line'); sys.exit(1)",
        "print('a line'); raise UserError('a.json: bad')",
        "from rich.console import Console\nfor _ in range(10**4): Console().print('a line')",
    ],
)
def test_a_closed_pipe_is_not_reported_as_an_error(tmp_path, body):
    """The reader of the pipe is closed before the tool starts, while `tool | head` closes it later."""
    tool = [sys.executable, "-c", TOOL + "\n".join(f"    {line}" for line in body.splitlines()) + "\nrun(main)\n"]
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:
        done = subprocess.run(
            tool, env=ENVIRONMENT, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.returncode != 0 and done.returncode != 120  # 120 is an error while Python shuts down
    assert done.stderr == ("error: a.json: bad\n" if "UserError" in body else "")


# Output paths


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with a file, a folder and a broken link."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("content")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize("text", ["folder", "new", "new/newer", ".", "folder/new", "new/x.html"])
def test_a_path_that_can_be_created_is_accepted(workplace: Path, text: str):
    assert out_folder(text) == Path(text)
    if text not in ("folder", "."):
        assert out_file(text) == Path(text)
    names = sorted(path.name for path in workplace.rglob("*"))
    assert names == ["dangling", "file", "folder"], "the functions create nothing"


@pytest.mark.parametrize(
    "text", ["file", "file/x", "file/x/y", "dangling", "dangling/x", "x" * 300, "new/" + "x" * 300]
)
def test_a_path_that_cannot_be_a_folder_is_refused(workplace: Path, text: str):
    with pytest.raises((UserError, OSError), match=r"file|dangling|xxx"):
        out_folder(text)


@pytest.mark.parametrize("text", ["folder", ".", "file/x", "file/x/y", "dangling/x", "new/" + "é" * 130])
def test_a_path_that_cannot_be_a_file_is_refused(workplace: Path, text: str):
    with pytest.raises((UserError, OSError)):
        out_file(text)
    assert out_file("file") == Path("file") and (workplace / "file").read_text() == "content"


def test_an_accepted_file_name_can_be_written_and_only_a_longer_name_is_refused(workplace: Path):
    limit = os.pathconf(workplace, "PC_NAME_MAX")
    accepted = []
    for length in range(limit - 16, limit + 3):
        try:
            accepted.append(out_file("x" * (length - 5) + ".json"))
        except (UserError, OSError):
            continue
        write_text(accepted[-1], "")  # does not raise
    assert max(len(path.name) for path in accepted) == limit


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/somewhere")
    paths = [user_path(text) for text in ("~/x", "~", "x/~", "./~", "~no_such_user/x")]
    assert paths == [Path(p) for p in ("/somewhere/x", "/somewhere", "x/~", "~", "~no_such_user/x")]


WRITERS = {
    "train": ["--cfg", "./tiny.yaml"],
    "census": ["--cfg", "./tiny.yaml"],
    "convert": ["--cfg", "./tiny.yaml", "--to", "coco"],
    "evaluate": ["--cfg", "./tiny.yaml"],
    "probe": ["--checkpoint", "x.pt"],
    "export": ["--checkpoint", "x.pt"],
    "infer": ["--checkpoint", "x.pt", "x.png"],
    "report": ["folder"],
    "advise": ["--cfg", "./tiny.yaml", "--census", "x"],
    "study": ["--cfg", "losses"],
    "benchmark": ["census", "--cfg", "./tiny.yaml"],
}


@pytest.mark.parametrize("out", ["file/x", "x" * 300])
def test_each_tool_refuses_a_wrong_output_path_first(workplace: Path, out: str, capsys: pytest.CaptureFixture):
    (workplace / "tiny.yaml").write_text(TINY)
    assert WRITERS.keys() == {path.stem for path in REPO.glob("detector/cli/*.py") if '"--out"' in path.read_text()}
    for name, arguments in WRITERS.items():
        assert call_tool(name, *arguments, "--out", out) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("error: ") and errors.count("\n") == 1 and out[:9] in errors, name
    assert sorted(path.name for path in workplace.iterdir()) == ["dangling", "file", "folder", "tiny.yaml"]


@pytest.mark.slow
def test_the_data_check_writes_json_into_a_pipe_that_its_reader_closes(workplace: Path):
    (workplace / "tiny.yaml").write_text(TINY)
    command = [sys.executable, str(REPO / "tools/check_data.py"), "--cfg", "./tiny.yaml", "--json"]
    script = f"{' '.join(command)} 2> errors | head -c 1"
    done = subprocess.run([shutil.which("bash"), "-c", script], env=ENVIRONMENT, capture_output=True, timeout=120)
    assert done.stdout == b"{" and "Traceback" not in (workplace / "errors").read_text()
    assert "BrokenPipe" not in (workplace / "errors").read_text()


def test_an_error_has_a_problem_and_a_remedy():
    error = UserError("a.yaml: no\nsuch key; really", "remove it")
    assert (error.problem, error.remedy, str(error)) == (
        "a.yaml: no such key; really",
        "remove it",
        "a.yaml: no such key; really; remove it",
    )
    assert str(UserError("only this")) == "only this"
    copied = pickle.loads(pickle.dumps(error))  # as when a process sends the error to another
    assert (copied.problem, copied.remedy) == (error.problem, error.remedy)


def test_the_next_steps_are_commands_for_the_shell_of_the_user(monkeypatch: pytest.MonkeyPatch):
    commands = {"detector check": "check", "detector train --cfg 'a b.yaml'": "train"}
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    words = [shlex.split(line, comments=True) for line in next_steps(commands).splitlines()[1:]]
    assert words == [shlex.split(command) for command in commands]
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    words = [shlex.split(line, comments=True) for line in next_steps(commands).splitlines()[1:]]
    assert words == [["uv", "run", *shlex.split(command)] for command in commands]
