"""Run the command `detector census`."""

from detector.cli import run

run("census")
