"""The instruments of imbalance, from a config."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from detector.build.data import build_eval_loader, evaluation_side, facts
from detector.build.evaluation import with_targets
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
from detector.models.heads.anchors import AnchorHead


def build_census(config: Config, dataset: DetectionDataset) -> Census:
    """The census of a data set with the config's anchors and assigner, at evaluation's image size."""
    model = outline(config)
    if not isinstance(model.head, AnchorHead):
        raise UserError(f"model.head: a census counts anchors, and the head {config.model.head.type} has none")
    setting = Setting(
        grid=model.head.grid,
        assigner=config.assigner.build(facts(dataset)),
        target_size=partial(target_size, short_side=evaluation_side(config), long_side=config.data.long_side),
        divisor=model.size_divisor,
        prior=model.head.initial_score,
        num_classes=len(dataset.class_names),
    )
    return take_census(dataset.records, dataset.class_names, setting)


def build_probe(
    config: Config, dataset: DetectionDataset, device: torch.device, dtype: torch.dtype
) -> Callable[[nn.Module], Probe]:
    """A function from a model to what a pass over `dataset` shows, with every registered loss: the config's own as it
    is set there, the others by their defaults."""
    own = config.loss.classification
    parts = {name: CLASSIFICATION_LOSSES.resolve(name) for name in CLASSIFICATION_LOSSES.names()} | {own.type: own}
    loader, known = build_eval_loader(config, dataset), facts(dataset)

    def run(model: nn.Module) -> Probe:
        probe = Probe({name: build_classification_loss(part, known) for name, part in parts.items()})
        observe = with_targets(config, dataset, lambda _, *seen: probe.update(*seen))
        for seen in predict(model, loader, device=device, dtype=dtype):
            observe(*seen)
        return probe

    return run
