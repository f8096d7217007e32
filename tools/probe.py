"""Run the command `detector probe`."""

from detector.cli import run

run("probe")
