"""The same as `detector evaluate`."""

from detector.cli import run

run("evaluate")
