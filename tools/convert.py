"""Run the command `detector convert`."""

from detector.cli import run

run("convert")
