"""The same as `detector benchmark`."""

from detector.cli import run

run("benchmark")
