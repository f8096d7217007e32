"""Choose the device, the number format and the memory format of the computation."""

import logging
import os
from typing import Literal

import torch

from detector.core.errors import UserError

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str, key: str = "train.device") -> torch.device:
    """Return the device of this process.

    Args:
        name: `auto`, `cpu` or `cuda`. `auto` is `cuda` if PyTorch has a GPU, and else `cpu`. With several GPUs, `cuda`
            is the GPU of the local rank, which torchrun sets.
        key: the config key or argument that an error names.

    Raises:
        UserError: the name is unknown, or it is `cuda` and PyTorch has no GPU for this process.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"{key}: {name!r} is not a device", "give 'auto', 'cpu' or 'cuda'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device(name)
    local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if not torch.cuda.is_available():
        raise UserError(f"{key}: cuda, but PyTorch finds no GPU", "give auto or cpu, or install a GPU driver")
    if local_rank >= num_gpus:
        raise UserError(
            f"{key}: local rank {local_rank} has no GPU: this machine has {num_gpus} GPUs",
            f"start at most {num_gpus} processes",
        )
    return torch.device(name, local_rank)


def choose_dtype(precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> torch.dtype:
    """Return the number format of a training.

    Args:
        precision: `auto` is bf16 if the device has hardware for it, and else fp32. GPUs have this hardware, and CPUs
            with AMX or AVX512-BF16. An emulated bf16 convolution is about ten times slower than fp32.
        device: where the model computes.
    """
    if precision != "auto":
        return DTYPES[precision]
    return torch.bfloat16 if _has_bf16(device) else torch.float32


def choose_inference_dtype(precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> torch.dtype:
    """Return the number format of the training, or fp32 if this device has no hardware for that format.

    Args:
        precision: `train.precision` of the model.
        device: where the model computes.
    """
    dtype = choose_dtype(precision, device)
    is_slow = dtype == torch.bfloat16 and not _has_bf16(device)
    if not is_slow and (dtype != torch.float16 or device.type == "cuda"):
        return dtype
    log.info("train.precision: this %s has no hardware for %s: computing in fp32", device.type, precision)
    return torch.float32


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return a context in which PyTorch computes in `dtype`. For fp32, the context has no effect."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def choose_memory_format(
    channels_last: bool | Literal["auto"], device: torch.device, dtype: torch.dtype, is_depthwise: bool = False
) -> torch.memory_format:
    """Return the memory format of the model.

    Args:
        channels_last: `auto` is true, except for fp32 on a CPU, where contiguous maps make convolutions faster.
            Depthwise convolutions are slower there with contiguous maps.
        device: where the model computes.
        dtype: the number format in which the model computes.
        is_depthwise: whether the backbone has depthwise convolutions.
    """
    if channels_last == "auto":
        channels_last = device.type == "cuda" or dtype != torch.float32 or is_depthwise
    return torch.channels_last if channels_last else torch.contiguous_format
