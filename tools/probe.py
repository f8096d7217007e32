"""The same as `detector probe`."""

from detector.cli import run

run("probe")
