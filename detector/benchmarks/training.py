"""The duration of our training step and of the step of torchvision's RetinaNet on equal data and settings."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torchvision.models import resnet50
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detector.benchmarks.timing import alternate, compare, synchronize
from detector.build import build_model, build_trainer
from detector.config import Config, config_from_text
from detector.core.structures import Batch
from detector.data.dataset import DetectionDataset, Record
from detector.engine.optimization import make_optimizer
from detector.engine.precision import autocast, choose_device, choose_dtype

NUM_CLASSES = 80
OBJECTS = 8


def make_batch(batch_size: int, side: int) -> Batch:
    """Return random images and boxes, equal for every call.

    Args:
        batch_size: the number of images.
        side: the image side in pixels.
    """
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(batch_size, OBJECTS, 2, 2, generator=generator).sort(dim=2).values * side
    boxes = corners.flatten(2) + torch.tensor([0.0, 0.0, 8.0, 8.0])
    sizes = torch.tensor([[side, side]] * batch_size)
    return Batch(
        images=torch.randint(0, 256, (batch_size, side, side, 3), dtype=torch.uint8, generator=generator).permute(
            0, 3, 1, 2
        ),
        sizes=sizes,
        original_sizes=sizes,
        boxes=boxes.clamp(max=side),
        labels=torch.randint(0, NUM_CLASSES, (batch_size, OBJECTS), generator=generator),
        ignore=torch.zeros(batch_size, OBJECTS, dtype=torch.bool),
        image_ids=tuple(range(batch_size)),
        file_names=("random",) * batch_size,
    )


def our_step(batch: Batch, config: Config) -> Callable[[], object]:
    """Return a function that takes a training step of our model.

    Args:
        batch: the batch of every step.
        config: the config of the training.
    """
    class_names = [str(k) for k in range(NUM_CLASSES)]
    side = batch.images.shape[-1]
    no_objects = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool), np.empty(0, np.float32)
    records = [Record(Path(), i, side, side, *no_objects) for i in batch.image_ids]  # not used, the step gets `batch`
    data = DetectionDataset(records, class_names, range(NUM_CLASSES))
    folder, device = Path(tempfile.gettempdir()), choose_device(config.train.device)
    batch = batch.to(device)
    trainer = build_trainer(config, build_model(config, NUM_CLASSES), data, data, folder)
    trainer.model.train()
    trainer.step([batch])  # the first step waits for the GPU, because it logs the expected initial loss

    def step() -> None:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")  # a step that waits for the GPU fails here
        trainer.step([batch])
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")

    return step


def torchvision_retinanet(side: int, config: Config) -> tuple[RetinaNet, torch.device]:
    """Return torchvision's RetinaNet with an untrained ResNet-50, and its device.

    Args:
        side: the image side in pixels.
        config: the config, for the device and the trained stages of the backbone.
    """
    device = choose_device(config.train.device)
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    backbone = _resnet_fpn_extractor(
        body,
        config.model.backbone.parameters["trainable_stages"],
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return RetinaNet(backbone, NUM_CLASSES, min_size=side, max_size=side).to(device), device


def torchvision_step(batch: Batch, config: Config, dtype: torch.dtype, channels_last: bool) -> Callable[[], object]:
    """Return a function that takes a training step of torchvision's RetinaNet.

    Args:
        batch: the batch of every step.
        config: the config, for the device and the optimizer.
        dtype: the floating-point type of autocast.
        channels_last: whether the memory format is channels-last.
    """
    model, device = torchvision_retinanet(batch.images.shape[-1], config)
    model.train()
    images = (batch.images.float() / 255).to(device)
    if channels_last:
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    else:
        images = images.contiguous()
    targets = [{"boxes": b.to(device), "labels": k.to(device)} for b, k in zip(batch.boxes, batch.labels, strict=True)]
    optimizer = make_optimizer(model, config.train)

    def step() -> None:
        with autocast(device, dtype):
            losses = model(list(images), targets)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 35)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def run(*, side: int, batch_size: int, rounds: int, precision: str, with_compile: bool) -> dict:
    """Measure our step, torchvision's step (fp32, contiguous), and torchvision's step in our precision and layout.

    Args:
        side: the image side in pixels.
        batch_size: the number of images.
        rounds: the number of calls of each candidate.
        precision: the value of train.precision.
        with_compile: whether our step under torch.compile is measured too.
    """
    config = config_from_text(
        "data: {train: synthetic, val: synthetic}\n"
        "model: {backbone: resnet50}\n"
        f"train: {{precision: {precision}, lr: 0.0001, clip_norm: 35, batch_size: {batch_size}}}",
        "the benchmark's config",
    )
    device = choose_device(config.train.device)
    dtype = choose_dtype(config.train.precision, device)
    batch = make_batch(batch_size, side)
    tuned = f"torchvision, {str(dtype).removeprefix('torch.')}, channels_last"
    metered = config.model_copy(update={"train": config.train.model_copy(update={"meter_every": 1})})
    candidates = {
        "ours": our_step(batch, config),
        f"ours with the meters read, as in 1 of {config.train.meter_every} steps": our_step(batch, metered),
        "torchvision, default": torchvision_step(batch, config, torch.float32, channels_last=False),
        tuned: torchvision_step(batch, config, dtype, channels_last=True),
    }
    if with_compile:
        compiled = config.model_copy(update={"train": config.train.model_copy(update={"compile": True})})
        candidates["ours, compiled"] = our_step(batch, compiled)
    rows = compare(alternate(candidates, rounds=rounds), "ours")
    for row, call in zip(rows, candidates.values(), strict=True):
        row |= {"images_s": batch_size / row["median_s"]} | where_time_goes(call, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            call()
            row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return {"benchmark": "training", "model": "RetinaNet R50-FPN", "side": side, "batch_size": batch_size, "rows": rows}


def where_time_goes(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Return shares of a call's time on the device, measured by PyTorch's profiler.

    The shares are of all operations outside convolutions, and among them of copies (of formats and layouts),
    concatenations and the optimizer.

    Args:
        call: the function to profile.
        device: the device on which the function runs.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        call()
        synchronize()
    # the profiler reports the time on a GPU twice, for the operator and for its kernels
    events = [(e, e.device_type == DeviceType.CPU) for e in profiled.key_averages() if not e.is_user_annotation]
    operators = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e, on_cpu in events if on_cpu}
    total = sum(e.self_device_time_total for e, on_cpu in events if not on_cpu) if on_gpu else sum(operators.values())

    def share(part: str) -> float:
        return sum(time for key, time in operators.items() if part in key) / total

    return {
        "outside_convolutions": 1 - share("convolution"),
        "copies": share("copy_"),
        "concatenations": share("aten::cat"),
        "optimiser": share("_fused_"),
    }
