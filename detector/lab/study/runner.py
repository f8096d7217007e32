"""The execution of a study's runs. Each run is a separate training process, so runs do not share memory or threads."""

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
from detector.lab.study.results import Row, is_row_of, pending, read_results, result_row, write_results

log = logging.getLogger(__name__)

POLL_S = 0.2
GPU_BYTES_PER_RUN = 8 * 2**30
# If the study's process is killed with kill -9, the kernel also kills its runs. So no old run writes to the folder when
# the study is started again.
END_WITH_THE_STUDY = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of <linux/prctl.h>, which stays set after exec
if os.getppid() == int(sys.argv[1]):  # otherwise the study has already ended
    os.execvp(sys.argv[2], sys.argv[2:])
"""

Command = Callable[[Path, Path], list[str]]  # config file, run folder -> the command line that trains


@dataclass(frozen=True, slots=True)
class _Active:
    run: Run
    folder: Path
    process: subprocess.Popen[bytes]
    started: float


def choose_jobs() -> int:
    """Return the number of parallel runs.

    On a CPU it is the number of cores, because small models are hardly faster with a second thread. On a GPU each run
    gets 8 GiB of the free memory and two cores.
    """
    cores = num_cores()
    if not torch.cuda.is_available():
        return cores
    free, _ = torch.cuda.mem_get_info()
    return max(1, min(cores // 2, free // GPU_BYTES_PER_RUN))


def run_all(runs: list[Run], folder: Path, *, jobs: int, command: Command, keep_checkpoints: bool) -> None:
    """Train the runs without a result in `folder`/results.csv, and add a row for each run that ends.

    An interrupted run continues from its last checkpoint. A run that fails gets a row with its error, and the other
    runs continue. After SIGINT or SIGTERM the active runs save a checkpoint and end. If this process is killed, the
    active runs are killed too (on Linux).

    Args:
        runs: all runs of the study.
        folder: the folder of the study.
        jobs: the number of parallel runs.
        command: returns the command line of a run.
        keep_checkpoints: whether the checkpoints of finished runs are kept.

    Raises:
        UserError: results.csv has a row of a run, but with another config.
        Interrupted: SIGINT or SIGTERM arrived.
    """
    results = folder / "results.csv"
    rows = read_results(results)
    waiting = deque(pending(runs, results))
    log.info("%s: training %d of %d runs, %d in parallel", folder, len(waiting), len(runs), jobs)
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
                for ended in [job for job in active if job.process.poll() is not None]:
                    active.remove(ended)
                    row = _finish(ended, keep_checkpoints)
                    rows = [other for other in rows if not is_row_of(other, ended.run)] + [row]
                    write_results(results, rows)
                    log.info("%3d runs remain  %s  %s", len(waiting) + len(active), ended.run.name, _outcome(row))
        finally:
            for job in active:
                job.process.terminate()  # the run finishes its step and saves a checkpoint
            for job in active:
                job.process.wait()


def _start(run: Run, folder: Path, command: Command, threads: int) -> _Active:
    config = folder / "configs" / f"{run.name}.yaml"
    write_text(config, to_yaml(run.config))
    out = folder / "runs" / run.name
    out.mkdir(parents=True, exist_ok=True)
    arguments = command(config, out)
    if sys.platform == "linux":
        arguments = [sys.executable, "-c", END_WITH_THE_STUDY, str(os.getpid()), *arguments]
    with (out / "log.txt").open("ab") as log_file:
        process = subprocess.Popen(
            arguments,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,  # Ctrl-C reaches only the study, and the study ends its runs
        )
    return _Active(run, out, process, time.perf_counter())


def _finish(ended: _Active, keep_checkpoints: bool) -> Row:
    """Return the row of a run whose process has ended."""
    seconds = time.perf_counter() - ended.started
    if ended.process.returncode != 0:
        lines = (ended.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        error = lines[-1] if lines else f"exit code {ended.process.returncode}"
        return result_row(ended.run, {}, seconds, error)
    metrics = read_record(ended.folder / "metrics.json", Metrics, EVALUATE)
    if not keep_checkpoints:
        shutil.rmtree(ended.folder / "checkpoints", ignore_errors=True)
    return result_row(ended.run, metrics.numbers, seconds)


def _outcome(row: Row) -> str:
    value = float(row["AP"] or math.nan)
    return row["error"] or f"AP {value:.4f} in {float(row['seconds']):.0f} s"
