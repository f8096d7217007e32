"""The same as `detector check`."""

from detector.cli import run

run("check")
