import pytest
import torch

from detector.core.errors import UserError
from detector.engine.precision import (
    DTYPES,
    autocast,
    choose_device,
    choose_dtype,
    choose_inference_dtype,
    choose_memory_format,
)

CPU = torch.device("cpu")


def test_named_precisions_and_devices():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert {name: choose_dtype(name, CPU) for name in DTYPES} == expected


def test_each_process_has_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("cuda") == torch.device("cuda:3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"train\.device"):
        choose_device("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_and_an_unknown_device_are_refused():
    with pytest.raises(UserError, match=r"train\.device"):
        choose_device("cuda")
    with pytest.raises(UserError, match="^device"):
        choose_device("cuda", "device")
    with pytest.raises(UserError, match="^device.*tpu"):
        choose_device("tpu", "device")


def test_inference_computes_in_a_format_for_which_the_device_has_hardware(monkeypatch: pytest.MonkeyPatch):
    assert choose_inference_dtype("fp16", CPU) == choose_inference_dtype("fp32", CPU) == torch.float32
    for is_fast in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda is_fast=is_fast: is_fast)
        expected = torch.bfloat16 if is_fast else torch.float32
        assert choose_inference_dtype("bf16", CPU) == choose_inference_dtype("auto", CPU) == expected


def test_auto_on_a_cpu_is_bf16_only_with_hardware_for_it():
    """Linux lists the instruction sets of the processor."""
    with open("/proc/cpuinfo") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    is_fast = "amx_bf16" in flags or "avx512_bf16" in flags
    assert choose_dtype("auto", CPU) == (torch.bfloat16 if is_fast else torch.float32)


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_autocast_computes_in_the_chosen_format(dtype: torch.dtype):
    layer = torch.nn.Linear(4, 4)
    with autocast(CPU, dtype):
        assert layer(torch.ones(2, 4)).dtype == dtype
    assert layer(torch.ones(2, 4)).dtype == torch.float32 and layer.weight.dtype == torch.float32


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_format(device: str, dtype: torch.dtype):
    target = torch.device(device)
    assert choose_memory_format(True, target, dtype) is torch.channels_last
    assert choose_memory_format(False, target, dtype) is torch.contiguous_format
    contiguous = device == "cpu" and dtype == torch.float32
    assert (choose_memory_format("auto", target, dtype) is torch.contiguous_format) == contiguous
    assert choose_memory_format("auto", target, dtype, is_depthwise=True) is torch.channels_last
