"""Alternating timing of candidates in a process. Machines are shared and noisy, so only ratios are reliable."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def alternate(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Return the seconds of each candidate in each round.

    A round calls every candidate in order and waits for the GPU after each call.

    Args:
        candidates: the functions by name.
        rounds: the number of measured rounds.
        warmup: the number of rounds before the measurement.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(warmup + rounds):
        for name, call in candidates.items():
            synchronize()
            started = time.perf_counter()
            call()
            synchronize()
            if i >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def synchronize() -> None:
    """Wait until the GPU has finished its work. Without a GPU nothing happens."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(seconds: dict[str, list[float]], subject: str) -> list[dict]:
    """Return a row for each candidate: median, minimum and maximum of the seconds, and `times_subject`.

    `times_subject` is the median over the rounds of the candidate's seconds divided by the subject's seconds.

    Args:
        seconds: the seconds of each round by the candidate's name.
        subject: the name of the candidate to which all are compared.
    """
    return [
        {
            "name": name,
            "median_s": statistics.median(times),
            "min_s": min(times),
            "max_s": max(times),
            "times_subject": statistics.median(t / s for t, s in zip(times, seconds[subject], strict=True)),
        }
        for name, times in seconds.items()
    ]


def machine() -> dict:
    """Return the versions and the hardware of this machine that affect speed."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "torch": torch.__version__,
        "gpu": gpu,
        "cpu": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }
