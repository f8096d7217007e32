"""A function that runs a tool in this process."""

import runpy
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]


def run_tool(name: str, *arguments: object) -> int:
    """Run the script tools/`name`.py in this process, and return its exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, arguments)])
        runpy.run_path(str(REPO / f"tools/{name}.py"), run_name="__main__")
    return stopped.value.code
