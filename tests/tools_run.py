"""Calls a tool as its user does, in this process."""

import runpy
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]


def run_tool(name: str, *arguments: object) -> int:
    """The tool's exit code, run in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, arguments)])
        runpy.run_path(str(REPO / f"tools/{name}.py"), run_name="__main__")
    return stopped.value.code
