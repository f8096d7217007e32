"""Run the command `detector export`."""

from detector.cli import run

run("export")
