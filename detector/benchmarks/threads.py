"""The training rate for each number of threads, way of waiting between threads, and number of loader workers.

OpenMP reads its settings once, before torch is imported. So each setting runs in separate processes, which alternate.
"""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from detector.core.files import read_json
from detector.core.machine import OPENMP, keep_fastest, num_cores

# waiting threads spin for some time and then sleep (OpenMP's default), spin (active) or sleep (passive)
WAITING = {"default": {}, "active": {"OMP_WAIT_POLICY": "active"}, "passive": {"OMP_WAIT_POLICY": "passive"}}


def training_rate(cfg: str, overrides: list[str], steps: int, workers: int, openmp: dict[str, str]) -> float:
    """Measure images per second of training with its loader, in a separate process.

    Args:
        cfg: the name or path of the config.
        overrides: config values as key.path=value.
        steps: the number of measured steps.
        workers: the number of loader workers.
        openmp: the values of the environment variables OPENMP.
    """
    environment = {name: value for name, value in os.environ.items() if name not in OPENMP}
    with TemporaryDirectory() as folder:
        out = Path(folder) / "loader.json"
        options = ["--workers", str(workers), "--steps", str(steps), "--rounds", "1", "--out", str(out)]
        command = [sys.executable, "-m", "detector", "benchmark", "loader", "--cfg", cfg, *options, *overrides]
        subprocess.run(command, env=environment | openmp, check=True, stdout=subprocess.DEVNULL)
        rows = read_json(out)["rows"]
    return next(row["images_s"] for row in rows if row["name"].startswith("both"))


def candidates(workers: list[int], cores: int) -> dict[str, tuple[int, dict[str, str]]]:
    """Return the settings by name: the number of workers, and the environment variables of OpenMP.

    The numbers of threads are the number of cores, and the number of cores without one core for each worker.

    Args:
        workers: the numbers of loader workers.
        cores: the number of cores.
    """
    return {
        f"{count} workers, {threads} threads, {waiting}": (count, {"OMP_NUM_THREADS": str(threads), **variables})
        for count, (waiting, variables) in product(workers, WAITING.items())
        for threads in sorted({cores, max(1, cores - count)}, reverse=True)
    }


def run(*, cfg: str, overrides: list[str], workers: list[int], steps: int, rounds: int) -> dict:
    """Measure images per second for every number of workers, way of waiting and number of threads.

    The fastest setting is stored. Trainings of the config on this machine start with the stored setting.

    Args:
        cfg: the name or path of the config.
        overrides: config values as key.path=value.
        workers: the numbers of loader workers.
        steps: the number of measured steps.
        rounds: the number of measurements of each setting.
    """
    cores = num_cores()
    settings = candidates(workers, cores)
    rates: dict[str, list[float]] = {name: [] for name in settings}
    for _ in range(rounds):
        for name, (count, variables) in settings.items():
            rates[name].append(training_rate(cfg, overrides, steps, count, variables))
    first = next(iter(rates))
    rows = [
        {
            "name": name,
            "images_s": median(rates_of_setting),
            "times_first": median(r / b for r, b in zip(rates_of_setting, rates[first], strict=True)),
        }
        for name, rates_of_setting in rates.items()
    ]
    fastest = max(rates, key=lambda name: median(rates[name]))
    keep_fastest(cfg, *settings[fastest])
    return {"benchmark": "threads", "cfg": Path(cfg).name, "cores": cores, "fastest": fastest, "rows": rows}
