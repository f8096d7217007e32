"""Errors of PyTorch and its neighbours that come from a config or a machine, as one line that names the keys."""

import re

NO_GPU = "PyTorch finds no GPU of that number here; set train.device=auto or cpu"
MEMORY = (
    "out of memory; lower evaluation.batch_size or train.batch_size, data.short_side, evaluation.scales or "
    "evaluation.candidates_per_level"
)
LINES = (  # a pattern of the error's text, and what it means
    (
        r"Expected more than 1 value per channel when training",
        "model.backbone.norm: batch norm has one value of each channel alone, which has no variance; raise "
        "train.batch_size or data.short_side, or set model.backbone.norm=group (or frozen, with model.weights)",
    ),
    (r"not compiled with CUDA|no NVIDIA driver|No CUDA GPUs|no CUDA-capable device|invalid device ordinal", NO_GPU),
    (
        r"DataLoader worker .*(killed by signal|exited unexpectedly)|shared memory object|shared memory\(shm\)",
        "data.num_workers: a loader worker was killed, mostly because memory was full; lower it, or train.batch_size",
    ),
)
NO_MEMORY = re.compile(r"out of memory|DefaultCPUAllocator|not enough memory|Insufficient memory|Unable to allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU or of the host did not suffice."""
    return isinstance(error, MemoryError) or NO_MEMORY.search(str(error)) is not None


def explain(error: Exception) -> str | None:
    """What the user can do about an error; None where it is none of those that are known."""
    text = str(error)
    line = next((line for pattern, line in LINES if re.search(pattern, text)), None)
    if line is None and is_out_of_memory(error):
        line = MEMORY
    return f"{line} ({_first_line(text)})" if line and text else line


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]
