"""The same as `detector infer`."""

from detector.cli import run

run("infer")
