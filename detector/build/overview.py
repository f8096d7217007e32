"""What a training is about to do, as lines for the console and as pictures of its data."""

from pathlib import Path

import numpy as np
import torch

from detector.build.data import evaluation_side
from detector.config import Config
from detector.core.distributed import world_size
from detector.data.dataset import DetectionDataset
from detector.data.pipeline.transforms import target_size
from detector.engine.data_pictures import save_batch, save_labels
from detector.engine.trainer import Trainer
from detector.models.detector import DetectionModel

DIVISORS = {
    "global": "the number of foreground locations in the step",
    "local": "the number of foreground locations in the step, for each process separately",
    "ema": "the running mean of the number of foreground locations in a step",
    "image": "the number of foreground locations in each image",
}


def describe_run(config: Config, trainer: Trainer, train: DetectionDataset, val: DetectionDataset, folder: Path) -> str:
    """Return a few aligned lines: the data, the model, the losses, the schedule, the device and the output folder."""
    model, schedule, settings = trainer.model, trainer.schedule, config.train
    side, device = config.data.short_side, trainer.step.device
    processes = f", {world_size()} processes" if world_size() > 1 else ""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    losses = f"{config.loss.classification.type} (classes) + {' + '.join(t.loss.type for t in config.loss.box)} (boxes)"
    divisors = DIVISORS[config.loss.normaliser]
    if config.loss.box_rows == "score":
        divisors += "; the box terms are divided by the sum of their scores"
    epochs = f"{settings.epochs} epochs of {schedule.steps_per_epoch} steps of {schedule.images_per_step} images"
    lines = {
        "training": train.describe(),
        "validation": val.describe(),
        "images": f"short side {side}, long side at most {config.data.long_side} pixels",
        "model": _describe_model(config, model),
        "losses": f"{losses}, each sum divided by {divisors}",
        "schedule": f"{epochs}; {settings.optimizer}, learning rate {settings.lr:g}, {settings.schedule}",
        "device": f"{device}, {str(trainer.step.dtype).removeprefix('torch.')}{threads}{processes}",
        "output": f"{folder}",
    }
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items())


def _describe_model(config: Config, model: DetectionModel) -> str:
    backbone, head = config.model.backbone.type, config.model.head.type
    weights = f"weights {config.model.weights}" if config.model.weights else "random weights"
    sizes = [parameter.numel() for parameter in model.parameters()]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = "" if trained == sum(sizes) else f", {trained / 1e6:.1f} million of them trained"
    levels = f"{model.level_names[0]} to {model.level_names[-1]}"
    return f"{backbone} ({weights}), levels {levels}, head {head}; {sum(sizes) / 1e6:.1f} million parameters{frozen}"


def draw_data(config: Config, trainer: Trainer, train: DetectionDataset, folder: Path) -> None:
    """Write batch_0.jpg, the first training batch with its boxes, and labels.png, the statistics of the labels."""
    save_batch(folder / "batch_0.jpg", trainer.loader.first_batch(), train.class_names)
    strides = trainer.model.strides
    priors = torch.cat(trainer.model.head.priors((strides[-1], strides[-1])))
    save_labels(
        folder / "labels.png",
        train.class_counts(),
        train.class_names,
        _object_sides(config, train),
        (priors[:, 2:] - priors[:, :2]).unique(dim=0).numpy(),
    )


def _object_sides(config: Config, train: DetectionDataset) -> np.ndarray:
    """Return width and height (N, 2) of the objects, in pixels of the images at the size of evaluation."""
    sides = [np.empty((0, 2))]
    for record in train.records:
        size = target_size(record.height, record.width, evaluation_side(config), config.data.long_side)
        boxes = record.boxes[~record.crowd]
        sides.append((boxes[:, 2:] - boxes[:, :2]) * (size[0] / record.height))
    return np.concatenate(sides)
