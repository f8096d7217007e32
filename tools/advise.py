"""The same as `detector advise`."""

from detector.cli import run

run("advise")
