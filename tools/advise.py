"""Run the command `detector advise`."""

from detector.cli import run

run("advise")
