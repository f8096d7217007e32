"""Run the command `detector train`."""

from detector.cli import run

run("train")
