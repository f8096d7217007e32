"""The properties of this machine, and the fastest settings that were measured on it.

OpenMP reads its settings once, when torch is imported. So this module does not import torch.
"""

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from detector.core.files import read_json, write_json

OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")


def num_cores() -> int:
    """Return the number of cores that this process may use. In a container, these are the cores of the container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """Return the folder `imbalance-detector` in XDG_CACHE_HOME, or in ~/.cache where that variable is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imbalance-detector"


def keep_fastest(cfg: str, workers: int, openmp: dict[str, str]) -> Path:
    """Record the fastest settings of a config on this machine. Later trainings use them (see `take_fastest`).

    Args:
        cfg: the path or name of the config.
        workers: the number of loader workers.
        openmp: the values of the environment variables OPENMP. A variable that is not in it stays unset.

    Returns:
        The file of the record.
    """
    path = cache_folder() / "fastest.json"
    known = _read(path)
    known.setdefault(_name(), {})[Path(cfg).stem] = {
        "workers": workers,
        "openmp": openmp,
        "measured": str(date.today()),
    }
    write_json(path, known)
    return path


def take_fastest(cfg: str) -> dict[str, Any] | None:
    """Return the settings that `keep_fastest` has recorded for `cfg` on this machine, and set their variables.

    The result is None where nothing is recorded, or where the user has set a variable of OpenMP. Call the function
    before torch is imported.
    """
    record = _read(cache_folder() / "fastest.json").get(_name(), {}).get(Path(cfg).stem)
    if record is None or any(name in os.environ for name in OPENMP):
        return None
    os.environ.update(record["openmp"])
    return record


def _read(path: Path) -> dict:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}  # a cache file that cannot be read counts as empty


def _name() -> str:
    """Return the name of this machine: its processor, its number of cores and the version of PyTorch."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return f"{processor}, {num_cores()} cores, torch {version('torch')}"
