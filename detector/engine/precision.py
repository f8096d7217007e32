"""Which device computes, and in which number format."""

import logging
import os
from typing import Literal

import torch

from detector.core.errors import UserError

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str, key: str = "train.device") -> torch.device:
    """`auto` is a GPU where there is one; of several, that of this process's local rank (torchrun).

    Raises UserError, which names `key`, for another name, and for `cuda` where PyTorch has no GPU for this process."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"{key}: {name!r} is wrong", "give 'auto', 'cpu' or 'cuda'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device(name)
    local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if not torch.cuda.is_available():
        raise UserError(f"{key}: cuda, but PyTorch finds no GPU here", "give auto or cpu, or install a driver")
    if local_rank >= num_gpus:
        raise UserError(f"{key}: no GPU is left for process {local_rank} of this machine", f"start {num_gpus}")
    return torch.device(name, local_rank)


def choose_dtype(precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> torch.dtype:
    """`auto` is bf16 where the hardware multiplies it: GPUs, and CPUs with AMX or AVX512-BF16; else fp32 (an emulated
    bf16 convolution is an order of magnitude slower)."""
    if precision != "auto":
        return DTYPES[precision]
    return torch.bfloat16 if _multiplies_bf16(device) else torch.float32


def choose_inference_dtype(precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> torch.dtype:
    """The format that a model was trained in, or fp32 where this device does not multiply it."""
    dtype = choose_dtype(precision, device)
    is_slow = dtype == torch.bfloat16 and not _multiplies_bf16(device)
    if not is_slow and (dtype != torch.float16 or device.type == "cuda"):
        return dtype
    log.info("train.precision is %s, which this %s does not multiply; computing in fp32", precision, device.type)
    return torch.float32


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def choose_memory_format(
    channels_last: bool | Literal["auto"], device: torch.device, dtype: torch.dtype
) -> torch.memory_format:
    """`auto` is channels-last except for fp32 on a CPU, whose convolutions are faster from contiguous maps."""
    if channels_last == "auto":
        channels_last = device.type == "cuda" or dtype != torch.float32
    return torch.channels_last if channels_last else torch.contiguous_format
