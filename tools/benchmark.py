"""Run the command `detector benchmark`."""

from detector.cli import run

run("benchmark")
