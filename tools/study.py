"""The same as `detector study`."""

from detector.cli import run

run("study")
