"""Which number format a device computes in."""

import os
from typing import Literal

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """`auto` is a GPU where there is one; of several, that of this process's local rank (torchrun)."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name, int(os.environ.get("LOCAL_RANK", "0"))) if name == "cuda" else torch.device(name)


def choose_dtype(precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> torch.dtype:
    """`auto` is bf16 where the hardware multiplies it: GPUs, and CPUs with AMX or AVX512-BF16; else fp32 (an emulated
    bf16 convolution is an order of magnitude slower)."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def choose_memory_format(
    channels_last: bool | Literal["auto"], device: torch.device, dtype: torch.dtype
) -> torch.memory_format:
    """`auto` is channels-last except for fp32 on a CPU, whose convolutions are faster from contiguous maps."""
    if channels_last == "auto":
        channels_last = device.type == "cuda" or dtype != torch.float32
    return torch.channels_last if channels_last else torch.contiguous_format
