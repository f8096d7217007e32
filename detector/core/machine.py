"""The machine that a process runs on, and what was measured to be fastest there. OpenMP reads its settings once, when
torch is imported, so nothing here imports that."""

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from detector.core.files import read_json, write_json

OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")


def num_cores() -> int:
    """Those that this process may use: a container's, where it is in one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """`imbalance-detector` in XDG_CACHE_HOME, or in ~/.cache where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imbalance-detector"


def keep_fastest(cfg: str, workers: int, openmp: dict[str, str]) -> Path:
    """From now on, trainings of the config `cfg` on this machine start with so many loader workers and these of the
    variables OPENMP (see `take_fastest`). The file that says so."""
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
    """What `keep_fastest` was told for `cfg` here, its variables now in the environment; None where it was told nothing
    or where the environment has its own mind about OpenMP. Call it before torch is imported."""
    found = _read(cache_folder() / "fastest.json").get(_name(), {}).get(Path(cfg).stem)
    if found is None or any(name in os.environ for name in OPENMP):
        return None
    os.environ.update(found["openmp"])
    return found


def _read(path: Path) -> dict:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}  # a cache: what cannot be read was not measured


def _name() -> str:
    """Another processor, number of cores or PyTorch is another machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return f"{processor}, {num_cores()} cores, torch {version('torch')}"
