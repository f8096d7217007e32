"""Run the command `detector study`."""

from detector.cli import run

run("study")
