"""The same as `detector export`."""

from detector.cli import run

run("export")
