"""Run the command `detector check`."""

from detector.cli import run

run("check")
