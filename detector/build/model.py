"""Functions that build the model from a config: the network, the pretrained weights and the device."""

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
    """Return the initialized network on the CPU, without `model.weights`."""
    return DetectionModel(config.model, num_classes)


@dataclass(frozen=True, slots=True)
class Outline:
    """The properties of a network that the loaders and the census need.

    Attributes:
        strides: the stride of each pyramid level, in pixels.
        size_divisor: the number of pixels that should divide the sides of an image.
        head: the head, which computes the priors.
    """

    strides: tuple[int, ...]
    size_divisor: int
    head: Head


def outline(config: Config) -> Outline:
    """Return the outline of the network of the config. The outlines are cached by the section `model`."""
    section = config.model.model_dump_json()
    if section not in _OUTLINES:
        with torch.random.fork_rng(devices=[]):  # the random numbers of the training do not depend on the outline
            model = build_model(config, num_classes=1)
        _OUTLINES[section] = Outline(model.strides, model.size_divisor, model.head)
    return _OUTLINES[section]


_OUTLINES: dict[str, Outline] = {}


def build_trained_model(config: Config, dataset: DetectionDataset) -> DetectionModel:
    """Return the network for the classes of a data set, with `model.weights`.

    The random seed `train.seed` initializes the weights that `model.weights` does not contain.
    """
    seed = config.train.seed % 2**32
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    model = build_model(config, len(dataset.class_names))
    load_weights(model, config.model.weights, dataset.class_names)
    model.backbone.check_trainable()
    return model


def move_model(
    model: DetectionModel, config: Config, inference_device: str | None = None
) -> tuple[DetectionModel, torch.device, torch.dtype]:
    """Move a model to its device and its memory format.

    Args:
        model: the model.
        config: the config, which chooses the device and the data type of the training.
        inference_device: auto, cpu or cuda. It replaces the device of the config, which may be that of another
            machine. The data type is then one that the device can multiply. With None, the config chooses both for a
            training.

    Returns:
        The model, its device, and the data type to compute in.

    Raises:
        UserError: the device is cuda, and there is no GPU.
    """
    if inference_device is None:
        device = choose_device(config.train.device)
        dtype = choose_dtype(config.train.precision, device)
    else:
        device = choose_device(inference_device, "device")
        dtype = choose_inference_dtype(config.train.precision, device)
        if config.train.device not in ("auto", device.type):
            log.info("inference runs on %s, because train.device=%s is only for training", device, config.train.device)
    layout = choose_memory_format(config.train.channels_last, device, dtype, model.backbone.is_depthwise)
    return model.to(device).to(memory_format=layout), device, dtype
