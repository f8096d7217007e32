"""The duration of a training step of each variant of a study, and of the assignment in the step."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from detector.benchmarks.timing import alternate, compare
from detector.build import build_dataset, build_trained_model, build_trainer
from detector.config import Config
from detector.core.overrides import merge, read_overrides
from detector.core.structures import Batch
from detector.engine.precision import autocast
from detector.engine.trainer import Trainer
from detector.lab.study.plan import load_study, make_runs


def run(*, cfg: str, overrides: Sequence[str], rounds: int) -> dict:
    """Measure a training step of each variant of a study, on the first batch of the training set.

    `assignment_s` is the median duration of the assignment. `assignment_share` is its share of the step.

    Args:
        cfg: the name or path of the study. Its first level is measured.
        overrides: config values as key.path=value, for all variants.
        rounds: the number of measured steps of each variant.
    """
    study = load_study(cfg)
    common = merge(study.common, read_overrides(overrides, Config))
    study = study.model_copy(update={"common": common, "seeds": study.seeds[:1]})
    level = next(iter(study.levels))
    with TemporaryDirectory() as folder:
        trainers = {r.variant: _trainer(r.config, Path(folder)) for r in make_runs(study) if r.level == level}
        batches = {name: next(trainer.batches(0)) for name, trainer in trainers.items()}
        steps = {name: partial(trainer.step, batches[name]) for name, trainer in trainers.items()}
        rows = compare(alternate(steps, rounds=rounds), study.against)
        assigning = {name: _assignment(trainer, batches[name][0]) for name, trainer in trainers.items()}
        assignments = alternate(assigning, rounds=rounds)
    for row in rows:
        row["assignment_s"] = statistics.median(assignments[row["name"]])
        row["assignment_share"] = row["assignment_s"] / row["median_s"]
    return {"benchmark": "steps", "cfg": Path(cfg).name, "rows": rows}


def _trainer(config: Config, folder: Path) -> Trainer:
    train = build_dataset(config, "train")
    val = build_dataset(config, "val", train.class_names)
    trainer = build_trainer(config, build_trained_model(config, train), train, val, folder)
    trainer.model.train()
    return trainer


def _assignment(trainer: Trainer, batch: Batch) -> Callable[[], object]:
    """Return a function that assigns a batch."""
    step = trainer.step
    batch = batch.to(step.device)
    with torch.no_grad(), autocast(step.device, step.dtype):
        predictions = trainer.model(batch.images)
    # a copy of the predictions has not decoded its boxes yet
    return lambda: step.assign(batch, replace(predictions) if step.assigner.needs_predictions else None)
