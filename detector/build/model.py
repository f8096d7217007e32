"""The model, from a config: its network, its pretrained weights, its device."""

import logging
import random
from dataclasses import dataclass

import numpy as np
import torch

from detector.config import Config
from detector.data.dataset import DetectionDataset
from detector.engine.precision import choose_device, choose_dtype, choose_inference_dtype, choose_memory_format
from detector.models.detector import DetectionModel
from detector.models.heads import Head
from detector.models.weights.load import load_weights

log = logging.getLogger(__name__)


def build_model(config: Config, num_classes: int) -> DetectionModel:
    """Return the network as it is initialized, without `model.weights`, on the CPU."""
    return DetectionModel(config.model, num_classes)


@dataclass(frozen=True, slots=True)
class Outline:
    """What the data and the census must know of a network: the strides of its pyramid levels, the number that an
    image's sides should be multiples of, and a head, which knows its priors."""

    strides: tuple[int, ...]
    size_divisor: int
    head: Head


def outline(config: Config) -> Outline:
    """Return the outline of the network that the config describes. Each network is built once for it."""
    section = config.model.model_dump_json()
    if section not in _OUTLINES:
        with torch.random.fork_rng(devices=[]):  # the weights of the training come from the same numbers as before
            model = build_model(config, num_classes=1)
        _OUTLINES[section] = Outline(model.strides, model.size_divisor, model.head)
    return _OUTLINES[section]


_OUTLINES: dict[str, Outline] = {}


def build_trained_model(config: Config, dataset: DetectionDataset) -> DetectionModel:
    """Return the network for the classes of `dataset`, with `model.weights`; the rest is drawn from `train.seed`."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(config.train.seed % 2**32)
    model = build_model(config, len(dataset.class_names))
    load_weights(model, config.model.weights, dataset.class_names)
    model.backbone.check_trainable()
    return model


def place(
    model: DetectionModel, config: Config, inference_device: str | None = None
) -> tuple[DetectionModel, torch.device, torch.dtype]:
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
    return model.to(device).to(memory_format=layout), device, dtype
