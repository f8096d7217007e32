"""The same as `detector convert`."""

from detector.cli import run

run("convert")
