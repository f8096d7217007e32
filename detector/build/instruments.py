"""Functions that build the measurements of imbalance from a config."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from detector.build.assigners import build_assigner
from detector.build.data import build_eval_loader, evaluation_side, facts
from detector.build.losses import build_classification_loss
from detector.build.model import outline
from detector.config import Config
from detector.core.errors import UserError
from detector.data.dataset import DetectionDataset
from detector.data.pipeline.transforms import target_size
from detector.engine.evaluate import predict
from detector.imbalance.anchor_counts import Setting
from detector.imbalance.census import take_census
from detector.imbalance.census_result import Census
from detector.imbalance.probe import Probe
from detector.losses import CLASSIFICATION_LOSSES


def build_census(config: Config, dataset: DetectionDataset) -> Census:
    """Return the census of a data set with the anchors and the assigner of the config, at the image size of evaluation.

    Raises:
        UserError: the priors of the head have no grid.
    """
    model = outline(config)
    if model.head.grid is None:
        raise UserError(
            f"model.head: the priors of {config.model.head.type} have no grid to count", "set model.head=anchors"
        )
    setting = Setting(
        grid=model.head.grid,
        assigner=build_assigner(config, dataset),
        target_size=partial(target_size, short_side=evaluation_side(config), long_side=config.data.long_side),
        divisor=model.size_divisor,
        prior=model.head.initial_score,
        num_classes=len(dataset.class_names),
    )
    return take_census(dataset.records, dataset.class_names, setting)


def build_probe(
    config: Config, dataset: DetectionDataset, device: torch.device, dtype: torch.dtype
) -> Callable[[nn.Module], Probe]:
    """Return a function from a model to a probe of a data set with each registered classification loss.

    The loss of the config has the parameters of the config. The other losses have their defaults.

    Args:
        config: the config.
        dataset: the data set.
        device: the device of the model.
        dtype: the data type to compute in.
    """
    trained = config.loss.classification
    parts = {name: CLASSIFICATION_LOSSES.resolve(name) for name in CLASSIFICATION_LOSSES.names()}
    parts[trained.type] = trained
    loader, known, assigner = build_eval_loader(config, dataset), facts(dataset), build_assigner(config, dataset)

    def run(model: nn.Module) -> Probe:
        probe = Probe({name: build_classification_loss(part, known) for name, part in parts.items()})
        for batch, predictions in predict(model, loader, device=device, dtype=dtype):
            probe.update(predictions, assigner(predictions.priors, batch.truth, predictions))
        return probe

    return run
