"""Side-by-side timing in one process: machines are shared and noisy, so only ratios measured in turn count."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def alternate(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; a round calls every candidate once, in order, and waits for the GPU."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(warmup + rounds):
        for name, call in candidates.items():
            synchronise()
            started = time.perf_counter()
            call()
            synchronise()
            if i >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(seconds: dict[str, list[float]], subject: str) -> list[dict]:
    """A row a candidate: median, fastest and slowest second, and the median of the round-by-round ratios to `subject`
    (how many times slower than it)."""
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
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "torch": torch.__version__,
        "gpu": gpu,
        "cpu": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }
