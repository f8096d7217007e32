"""The same as `detector keys`."""

from detector.cli import run

run("keys")
