"""The same as `detector census`."""

from detector.cli import run

run("census")
