import io
import logging
import subprocess
import sys

import pytest

from detector.core.console import ConsoleHandler


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, level: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    ConsoleHandler().handle(logging.makeLogRecord({"msg": "%d of %s", "args": (3, "図"), "levelno": level}))
    return stream.getvalue()


def test_a_warning_stands_out_and_information_does_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert shown(io.StringIO(), logging.INFO, monkeypatch) == "3 of 図\n"
    assert shown(io.StringIO(), logging.WARNING, monkeypatch) == "warning: 3 of 図\n"
    assert shown(Terminal(), logging.INFO, monkeypatch) == "3 of 図\n"
    assert shown(Terminal(), logging.WARNING, monkeypatch).startswith("\x1b[")
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(Terminal(), logging.WARNING, monkeypatch) == "warning: 3 of 図\n"


def test_the_log_has_information_and_only_warnings_of_matplotlib():
    program = """
import logging
from detector.core.console import start_logging
start_logging()
for name in ("matplotlib.font_manager", "detector"):
    logging.getLogger(name).info("information of %s", name)
    logging.getLogger(name).warning("warning of %s", name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = ["warning: warning of matplotlib.font_manager", "information of detector", "warning: warning of detector"]
    assert done.stderr.splitlines() == lines
