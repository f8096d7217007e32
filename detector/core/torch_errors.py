"""Messages for the errors of PyTorch and other libraries that a config or a machine causes."""

import re

from detector.core.errors import UserError

MEMORY = (
    "the memory is full",
    "lower evaluation.batch_size or train.batch_size, data.short_side, evaluation.scales or "
    "evaluation.candidates_per_level",
)
KNOWN = (  # a pattern of the text of an error, the problem, and the remedy
    (
        r"Expected more than 1 value per channel when training",
        "a norm has only one value for each channel or group, and one value has no variance",
        "raise train.batch_size (batch norm) or data.short_side, or change model.backbone.norm or model.head.norm",
    ),
    (
        r"not compiled with CUDA|no NVIDIA driver|No CUDA GPUs|no CUDA-capable device|invalid device ordinal",
        "PyTorch finds no GPU with that number",
        "set train.device=auto or train.device=cpu",
    ),
    (
        r"DataLoader worker .*(killed by signal|exited unexpectedly)|shared memory object|shared memory\(shm\)",
        "data.num_workers: a loader worker was killed, usually because the memory was full",
        "lower data.num_workers or train.batch_size",
    ),
)
NO_MEMORY = re.compile(r"out of memory|DefaultCPUAllocator|not enough memory|Insufficient memory|Unable to allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of a GPU or of the host was full."""
    return isinstance(error, MemoryError) or NO_MEMORY.search(str(error)) is not None


def explain(error: Exception) -> UserError | None:
    """Return the problem and the remedy of an error, or None for an error that is not known."""
    text = str(error)
    known = next(((problem, remedy) for pattern, problem, remedy in KNOWN if re.search(pattern, text)), None)
    if known is None and is_out_of_memory(error):
        known = MEMORY
    if known is None:
        return None
    problem, remedy = known
    return UserError(f"{problem} ({_first_line(text)})" if text else problem, remedy)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]
