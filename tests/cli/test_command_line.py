"""The command `detector`: its subcommands, their help without an import of torch, and their scripts in tools/."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tools_run import run_tool

from detector.cli import COMMANDS, DISTRIBUTION

REPO = Path(__file__).parents[2]


def detector(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "detector", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPO)


def with_imports(*arguments: str) -> tuple[subprocess.CompletedProcess, set[str]]:
    """Run the command, and return the process and the modules that it has imported."""
    command = [sys.executable, "-X", "importtime", "-m", "detector", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPO)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time")]
    return done, {line.rpartition("|")[2].strip() for line in lines}


def test_the_help_lists_the_commands_without_importing_torch():
    done, imported = with_imports("--help")
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in COMMANDS)
    assert not imported & {"torch", "numpy", "pydantic"}


def test_the_version_is_the_version_of_the_package():
    assert version(DISTRIBUTION) in detector("--version").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_help_and_a_script(name: str):
    done, imported = with_imports(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: detector {name} ") and "Example" in done.stdout
    assert "torch" not in imported
    script = REPO / "tools" / ("check_data.py" if name == "check" else f"{name}.py")
    assert re.search(r'^run\("(\w+)"\)$', script.read_text(encoding="utf-8"), re.MULTILINE)[1] == name


def test_each_module_and_script_is_a_command():
    modules = {path.stem for path in REPO.glob("detector/cli/*.py")} - {"__init__"}
    scripts = {path.stem.removesuffix("_data") for path in REPO.glob("tools/*.py")}
    assert modules == scripts == COMMANDS.keys()


@pytest.mark.parametrize("arguments", [(), ("trian",), ("train",), ("train", "--nope")])
def test_wrong_arguments_exit_with_2(arguments: tuple[str, ...]):
    assert detector(*arguments).returncode == 2


def test_a_missing_config_exits_with_2():
    assert run_tool("train", "--cfg", "nope") == 2


def test_a_packaged_config_can_be_used_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    assert run_tool("train", "--cfg", "retina_focal.yaml", "train.epoch=1") == 2
    assert "train.epoch" in capsys.readouterr().err  # the error comes after the config is read
