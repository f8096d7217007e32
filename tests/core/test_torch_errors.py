"""The messages for real errors of PyTorch and other libraries."""

import os
import signal
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from detector.core.command import run
from detector.core.torch_errors import explain


def one_value_a_channel() -> None:
    nn.BatchNorm2d(4)(torch.zeros(1, 4, 1, 1))


def no_gpu_of_that_number() -> None:
    torch.zeros(1).to(torch.device("cuda", 99))


def too_much_for_torch() -> None:
    torch.empty(2**55)


def too_much_for_numpy() -> None:
    np.empty(2**55)


def too_much_for_opencv() -> None:
    cv2.resize(np.zeros((8, 8, 3), np.uint8), (2**19, 2**19))


class Killed(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def a_worker_is_killed() -> None:
    list(DataLoader(Killed(), num_workers=1))


@pytest.mark.parametrize(
    ("cause", "keys"),
    [
        (a_worker_is_killed, ["data.num_workers"]),
        (one_value_a_channel, ["model.backbone.norm", "train.batch_size", "data.short_side"]),
        (no_gpu_of_that_number, ["train.device"]),
        (too_much_for_torch, ["evaluation.batch_size", "data.short_side"]),
        (too_much_for_numpy, ["evaluation.batch_size", "data.short_side"]),
        (too_much_for_opencv, ["evaluation.scales", "data.short_side"]),
    ],
)
def test_an_error_of_the_config_or_the_machine_is_a_line_with_the_keys(
    cause: Callable[[], None], keys: list[str], capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit) as stopped:
        run(cause)
    errors = capsys.readouterr().err
    assert stopped.value.code == 2 and errors.startswith("error: ") and errors.count("\n") == 1
    assert all(key in errors for key in keys)


def test_a_full_memory_is_known_with_and_without_a_text():
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")):
        assert "data.short_side" in explain(error).remedy


@pytest.mark.parametrize(
    "text",
    [
        "unable to open shared memory object </torch_1_2_3> in read-write mode: Too many open files (24)",
        "unable to allocate shared memory(shm) for file </torch_1_2_3>: Resource temporarily unavailable (11)",
    ],
)
def test_the_shared_memory_of_loader_workers_is_known(text: str):
    assert "data.num_workers" in explain(RuntimeError(text)).remedy


def test_the_shared_memory_of_a_gpu_kernel_is_not_the_memory_of_the_loader():
    try:
        from triton.runtime.errors import OutOfResources
    except ImportError:
        pytest.skip("Triton is not installed")
    assert "shared memory" in str(OutOfResources(180_224, 101_376, "shared memory"))
    assert explain(OutOfResources(180_224, 101_376, "shared memory")) is None


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("shape mismatch"), KeyError("momentum")])
def test_other_errors_are_bugs(error: Exception):
    assert explain(error) is None
    with pytest.raises(type(error)):
        run(lambda: (_ for _ in ()).throw(error))
