"""The function that builds the trainer from a config."""

import logging
from pathlib import Path

from torch import nn

from detector.build.assigners import build_assigner
from detector.build.data import build_train_loader, facts
from detector.build.evaluation import build_evaluation
from detector.build.losses import build_criterion
from detector.build.model import move_model
from detector.config import Config, to_yaml
from detector.core.distributed import world_size
from detector.core.errors import UserError
from detector.data.checks.fingerprint import fingerprint
from detector.data.dataset import DetectionDataset
from detector.engine.optimization import make_optimizer
from detector.engine.schedule import Schedule
from detector.engine.step import TrainingStep
from detector.engine.trainer import Trainer
from detector.geometry.assignment import Assigner
from detector.losses.criterion import Criterion
from detector.models.detector import DetectionModel

log = logging.getLogger(__name__)


def build_trainer(
    config: Config, model: DetectionModel, train: DetectionDataset, val: DetectionDataset, folder: Path
) -> Trainer:
    """Return the trainer of a run, on its device, before the first step.

    Args:
        config: the config.
        model: the model with its initial weights.
        train: the training set.
        val: the validation set.
        folder: the folder of the run.

    Raises:
        UserError: the settings do not fit the data set, the device or each other.
    """
    settings = config.train
    shared = {record.path.resolve() for record in train.records} & {record.path.resolve() for record in val.records}
    if shared:
        log.warning(
            "data.val: %d of the %d images are also in data.train (first: %s), so the metrics will be too high; "
            "remove these images from data.train or data.val",
            *(len(shared), len(val), min(shared)),
        )
    model, device, dtype = move_model(model, config)
    has_sync = any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    if has_sync and device.type == "cpu" and world_size() > 1:
        raise UserError(
            f"model.backbone.norm: sync needs GPUs, but the {world_size()} processes run on the CPU",
            "set model.backbone.norm=group, or batch for separate statistics in each process",
        )
    loader = build_train_loader(config, train)
    steps_per_epoch = len(loader) // settings.accumulation
    if steps_per_epoch == 0:
        raise UserError(
            f"train.accumulation: a step has {settings.accumulation} batches, but an epoch has only {len(loader)}",
            "lower train.accumulation or train.batch_size",
        )
    schedule = Schedule(settings, steps_per_epoch, settings.accumulation * loader.batches.batch_size)
    if schedule.warmup_steps < settings.warmup_steps:
        log.info(
            "train.warmup_steps: the warm-up has %d steps, a tenth of the %d steps of this run, in place of %d",
            schedule.warmup_steps,
            schedule.num_steps,
            settings.warmup_steps,
        )
    criterion = build_criterion(config, train).to(device)
    assigner = build_assigner(config, train)
    _check_accumulation(config, assigner, criterion)
    step = TrainingStep(
        model,
        criterion,
        assigner,
        make_optimizer(model, settings),
        schedule,
        config.faults,
        class_names=train.class_names,
        device=device,
        dtype=dtype,
        one_to_many_assigner=None if criterion.one_to_many is None else config.assigner.build(facts(train)),
    )
    return Trainer(
        step,
        loader,
        evaluate=build_evaluation(config, val, device, dtype),
        description={
            "config": to_yaml(config),
            "class_names": list(train.class_names),
            "category_ids": list(train.category_ids),
            "data": {"train": fingerprint(train), "val": fingerprint(val)},
        },
        folder=folder,
    )


def _check_accumulation(config: Config, assigner: Assigner, criterion: Criterion) -> None:
    """Raise UserError where a step may have several batches, and its gradients cannot be divided after the last one."""
    if criterion.needs_single_batch and config.train.accumulation > 1:
        problem = f"train.accumulation: a step has {config.train.accumulation} batches"
        if criterion.one_to_many is not None:
            raise UserError(
                f"{problem}, but the two losses of model.head.one_to_one have separate divisors of a single batch",
                "set train.accumulation=1, or set model.head.one_to_one=false",
            )
        raise UserError(
            f"{problem}, but loss.box_rows=score divides by the scores of a single batch",
            "set train.accumulation=1, or set loss.box_rows=equal",
        )
    has_several = config.train.accumulation > 1 or config.faults.out_of_memory == "halve"
    if assigner.needs_predictions and has_several and not criterion.can_divide_afterwards:
        raise UserError(
            f"assigner: {config.assigner.type} needs predictions, so the normalizer is known only after the last batch "
            "of a step, but these losses divide by it in each batch",
            "set train.accumulation=1 and faults.out_of_memory=stop, or set loss.normaliser=global and losses that do "
            "not normalize themselves",
        )
