"""Runs the grid, each run a training process of its own: what one run does to memory or threads, no other notices."""

import logging
import math
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from detector.config import to_yaml
from detector.core.errors import Interrupted
from detector.core.files import write_text
from detector.core.json_records import read_record
from detector.core.machine import num_cores
from detector.engine.interrupt import Interrupt
from detector.evaluation.metrics import EVALUATE, Metrics
from detector.lab.study.plan import Run
from detector.lab.study.results import is_row_of, pending, read_results, result_row, write_results

log = logging.getLogger(__name__)

POLL_S = 0.2
GPU_BYTES_PER_RUN = 8 * 2**30
# A kill -9 of the study's process is one of its runs' too, so that the study started again finds none still writing.
END_WITH_THE_STUDY = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of <linux/prctl.h>, which outlasts exec
if os.getppid() == int(sys.argv[1]):  # else the study has ended before
    os.execvp(sys.argv[2], sys.argv[2:])
"""

Command = Callable[[Path, Path], list[str]]  # config file, run folder -> the process that trains


@dataclass(frozen=True, slots=True)
class _Active:
    run: Run
    folder: Path
    process: subprocess.Popen[bytes]
    started: float


def choose_jobs() -> int:
    """Runs at once: on a CPU one for each core, since small models gain little from a second thread; on a GPU as many
    as have 8 GiB of its free memory and two cores each."""
    cores = num_cores()
    if not torch.cuda.is_available():
        return cores
    free, _ = torch.cuda.mem_get_info()
    return max(1, min(cores // 2, free // GPU_BYTES_PER_RUN))


def run_all(runs: list[Run], folder: Path, *, jobs: int, command: Command, keep_checkpoints: bool) -> None:
    """Train what has no row in `folder`/results.csv yet, `jobs` at a time, and add a row for each run that ends.

    A run that was interrupted continues from its last checkpoint. One that fails gets a row with its error, and the
    others go on. SIGINT and SIGTERM let the active runs save themselves, and raise Interrupted; where this process is
    killed, so are they (on Linux). Raises UserError where results.csv has a run of the same name and another config.
    """
    results = folder / "results.csv"
    rows = read_results(results)
    waiting = deque(pending(runs, rows))
    log.info("%d of %d runs to do, %d at a time, in %s", len(waiting), len(runs), jobs, folder)
    threads = max(1, num_cores() // jobs)
    active: list[_Active] = []
    with Interrupt() as interrupt:
        try:
            while waiting or active:
                if interrupt.exit_code is not None:
                    raise Interrupted(interrupt.exit_code)
                while waiting and len(active) < jobs:
                    active.append(_start(waiting.popleft(), folder, command, threads))
                time.sleep(POLL_S)
                for one in [one for one in active if one.process.poll() is not None]:
                    active.remove(one)
                    row = _finish(one, keep_checkpoints)
                    rows = [other for other in rows if not is_row_of(other, one.run)] + [row]
                    write_results(results, rows)
                    log.info("%3d left  %s  %s", len(waiting) + len(active), one.run.name, _says(row))
        finally:
            for one in active:
                one.process.terminate()  # it finishes its step and saves
            for one in active:
                one.process.wait()


def _start(run: Run, folder: Path, command: Command, threads: int) -> _Active:
    config = folder / "configs" / f"{run.name}.yaml"
    write_text(config, to_yaml(run.config))
    out = folder / "runs" / run.name
    out.mkdir(parents=True, exist_ok=True)
    words = command(config, out)
    if sys.platform == "linux":
        words = [sys.executable, "-c", END_WITH_THE_STUDY, str(os.getpid()), *words]
    with (out / "log.txt").open("ab") as log_file:
        process = subprocess.Popen(
            words,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,  # Ctrl-C goes to the study alone, which ends its runs itself
        )
    return _Active(run, out, process, time.perf_counter())


def _finish(one: _Active, keep_checkpoints: bool) -> dict[str, str]:
    seconds = time.perf_counter() - one.started
    if one.process.returncode != 0:
        lines = (one.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        error = lines[-1] if lines else f"exit code {one.process.returncode}"
        return result_row(one.run, {}, seconds, error)
    metrics = read_record(one.folder / "metrics.json", Metrics, EVALUATE)
    if not keep_checkpoints:
        shutil.rmtree(one.folder / "checkpoints", ignore_errors=True)
    return result_row(one.run, metrics.numbers, seconds)


def _says(row: dict[str, str]) -> str:
    value = float(row["AP"] or math.nan)
    return row["error"] or f"AP {value:.4f} in {float(row['seconds']):.0f} s"
