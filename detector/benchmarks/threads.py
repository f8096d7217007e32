"""How many threads, how they wait for each other, and whether loader workers pay: settings that OpenMP reads once,
before torch is imported, so that each has processes of its own, which take turns."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from detector.core.files import read_json
from detector.core.machine import OPENMP, keep_fastest, num_cores

# between two pieces of work, threads spin for a while and then sleep (what OpenMP does untold), spin, or sleep
WAITING = {"untold": {}, "active": {"OMP_WAIT_POLICY": "active"}, "passive": {"OMP_WAIT_POLICY": "passive"}}


def training_rate(cfg: str, overrides: list[str], steps: int, workers: int, openmp: dict[str, str]) -> float:
    """Images a second of training with its loader, in a process with these of the variables OPENMP."""
    others = {name: value for name, value in os.environ.items() if name not in OPENMP}
    with TemporaryDirectory() as folder:
        out = Path(folder) / "loader.json"
        options = ["--workers", str(workers), "--steps", str(steps), "--rounds", "1", "--out", str(out)]
        command = [sys.executable, "-m", "detector", "benchmark", "loader", "--cfg", cfg, *options, *overrides]
        subprocess.run(command, env=others | openmp, check=True, stdout=subprocess.DEVNULL)
        rows = read_json(out)["rows"]
    return next(row["images_s"] for row in rows if row["name"].startswith("both"))


def run(*, cfg: str, overrides: list[str], workers: list[int], steps: int, rounds: int) -> dict:
    """Images a second for every number of workers, way to wait and number of threads: all cores, and all but those of
    the workers. The fastest is kept: trainings of this config on this machine start with it."""
    cores = num_cores()
    settings = {
        f"{count} workers, {threads} threads, {waiting}": (count, {"OMP_NUM_THREADS": str(threads), **variables})
        for count, (waiting, variables) in product(workers, WAITING.items())
        for threads in sorted({cores, max(1, cores - count)}, reverse=True)
    }
    rates: dict[str, list[float]] = {name: [] for name in settings}
    for _ in range(rounds):
        for name, (count, variables) in settings.items():
            rates[name].append(training_rate(cfg, overrides, steps, count, variables))
    first = next(iter(rates))
    rows = [
        {
            "name": name,
            "images_s": median(found),
            "times_first": median(r / b for r, b in zip(found, rates[first], strict=True)),
        }
        for name, found in rates.items()
    ]
    fastest = max(rates, key=lambda name: median(rates[name]))
    keep_fastest(cfg, *settings[fastest])
    return {"benchmark": "threads", "cfg": Path(cfg).name, "cores": cores, "fastest": fastest, "rows": rows}
