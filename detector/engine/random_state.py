"""The states of all random generators that a training step may use."""

import random

import numpy as np
import torch


def random_state(device: torch.device) -> dict:
    """Return the states of the generators of PyTorch, NumPy and Python, as tensors and plain containers."""
    python = random.getstate()
    numpy = np.random.get_state(legacy=True)
    assert isinstance(numpy, tuple)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:]],
        "python": [python[0], list(python[1]), python[2]],
    }


def restore_random_state(state: dict, device: torch.device) -> None:
    """Restore the states that `random_state` has returned.

    Args:
        state: the states. A CUDA state is ignored on other devices.
        device: where the training computes.
    """
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    name, keys, *position = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *position))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
