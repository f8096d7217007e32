"""The model, from a config: its network, its pretrained weights, its device."""

import logging
import random

import numpy as np
import torch
from torch import nn

from detector.config import Config
from detector.core.errors import UserError
from detector.data.dataset import DetectionDataset
from detector.engine.precision import choose_device, choose_dtype, choose_inference_dtype, choose_memory_format
from detector.geometry.anchors import AnchorGrid, default_sizes
from detector.models.backbones.resnet import frozen_batch_norm_is_random
from detector.models.detector import RetinaNet
from detector.models.weights.load import load_weights

log = logging.getLogger(__name__)


def build_anchor_grid(config: Config) -> AnchorGrid:
    model = config.model
    sizes = model.anchor_sizes or default_sizes(model.levels, model.exact_anchors)
    return AnchorGrid(model.levels, sizes, model.anchor_ratios, model.exact_anchors)


def build_model(config: Config, num_classes: int) -> RetinaNet:
    """The network as it is initialised, without `model.weights`, on the CPU."""
    sections = config.model.model_dump(exclude={"weights"})
    return RetinaNet(num_classes, **sections)


def build_trained_model(config: Config, dataset: DetectionDataset) -> RetinaNet:
    """The network with `model.weights`, the rest drawn from `train.seed`, for `dataset`'s classes."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(config.train.seed % 2**32)
    model = build_model(config, len(dataset.class_names))
    load_weights(model, config.model.backbone, config.model.weights, dataset.class_names)
    if config.model.norm == "frozen" and frozen_batch_norm_is_random(model.backbone.state_dict()):
        raise UserError(
            "model.norm: frozen batch norm normalises nothing without pretrained weights",
            "set model.weights (e.g. IMAGENET1K_V1), or model.norm=group or batch to train from scratch",
        )
    return model


def place(
    model: nn.Module, config: Config, inference_device: str | None = None
) -> tuple[nn.Module, torch.device, torch.dtype]:
    """The model on its device and in its memory format; the device; the format to compute in.

    They are those of the config's training. With `inference_device` (auto, cpu or cuda), a training on another machine
    decides neither the device nor a format that the device does not multiply. Raises UserError for cuda without a GPU.
    """
    if inference_device is None:
        device = choose_device(config.train.device)
        dtype = choose_dtype(config.train.precision, device)
    else:
        device = choose_device(inference_device, "device")
        dtype = choose_inference_dtype(config.train.precision, device)
        if config.train.device not in ("auto", device.type):
            log.info("running on %s; train.device=%s is for training alone", device, config.train.device)
    layout = choose_memory_format(config.train.channels_last, device, dtype)
    return model.to(device, memory_format=layout), device, dtype
