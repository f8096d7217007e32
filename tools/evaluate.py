"""Run the command `detector evaluate`."""

from detector.cli import run

run("evaluate")
