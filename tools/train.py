"""The same as `detector train`."""

from detector.cli import run

run("train")
