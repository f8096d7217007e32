"""Run the command `detector report`."""

from detector.cli import run

run("report")
