import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent


def run_tool(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run a real tool whose main function has the given body, as a user would."""
    tool = folder / "tool.py"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    tool.write_text(
        "from detector.command import run\nfrom detector.errors import UserError\n\n"
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
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )


def test_a_main_that_returns_exits_0(tmp_path):
    done = run_tool(tmp_path, "print('done')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_user_error_is_one_line_on_stderr_and_exit_2(tmp_path):
    done = run_tool(tmp_path, r"raise UserError('a.json: bad\nkey; mend it')")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: a.json: bad key; mend it\n")


def test_the_error_of_a_loader_worker_is_the_line_behind_its_traceback(tmp_path):
    body = r"raise UserError('Caught it in worker 0.\nTraceback:\n  ...\ndetector.errors.UserError: a.jpg: cut')"
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
    body = "from detector.errors import Interrupted\nraise Interrupted(143)"
    assert run_tool(tmp_path, body).returncode == 143


def test_an_exit_code_of_mains_own_stands(tmp_path):
    assert run_tool(tmp_path, "raise SystemExit(143)").returncode == 143
