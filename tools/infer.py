"""Run the command `detector infer`."""

from detector.cli import run

run("infer")
