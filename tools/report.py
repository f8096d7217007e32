"""The same as `detector report`."""

from detector.cli import run

run("report")
