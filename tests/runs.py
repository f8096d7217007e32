"""Trainings of the tiny detector, and functions that read and compare their results."""

import csv
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import TINY

from detector.build import build_dataset, build_trained_model, build_trainer
from detector.config import config_from_text
from detector.engine.guard import BufferSnapshot
from detector.engine.trainer import Trainer

RUN = (
    "data.transforms=[flip, {type: color, brightness: 0.2}]",
    "train.epochs=2",
    "train.accumulation=2",
    "train.lr=0.01",
    "train.log_every=2",
)
STEPS_PER_EPOCH = 3
WITH_STATE = (  # settings with each kind of state that a step can change
    "model.backbone.norm=batch",
    "loss.classification={type: ghm_c, bins: 10, momentum: 0.5}",
    "loss.box={type: ghm_r}",
    "train.ema_decay=0.9",
    "train.optimizer=adamw",
    "train.lr=0.001",
    "train.schedule=cosine",
    "train.clip_norm=1",
)


def make_trainer(folder: Path, *overrides: str) -> Trainer:
    """Return a trainer of the tiny detector for a run of two epochs with two batches in a step."""
    config = config_from_text(TINY, "TINY", [*RUN, *overrides])
    train = build_dataset(config, "train")
    val = build_dataset(config, "val", train.class_names)
    return build_trainer(config, build_trained_model(config, train), train, val, folder)


def first_batches(trainer: Trainer, count: int) -> list:
    batches = iter(trainer.loader)
    return [next(batches) for _ in range(count)]


def rows_of(folder: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(a: object, b: object, where: str = "") -> None:
    """Assert that nested containers are equal to the last bit. `where` is their path in error messages."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}.{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def seed_global_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def watch_steps(trainer: Trainer, observe: Callable[[list], None]) -> None:
    """Call `observe` with the batches of each step."""
    forward_backward = trainer.step.forward_backward_within_memory

    def observed(batches: list, buffers: BufferSnapshot) -> tuple:
        observe(batches)
        return forward_backward(batches, buffers)

    trainer.step.forward_backward_within_memory = observed


def send_sigterm_in_step(trainer: Trainer, step: int) -> None:
    """Send SIGTERM to this process during a step."""

    def kill(_: list) -> None:
        if trainer.step.steps_done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    watch_steps(trainer, kill)


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Return the step and the value of each scalar with this tag. Newer files have priority.

    The function sorts the files by time. TensorBoard sorts them by name, which is another order for files that were
    created within a second.
    """
    values: dict[int, float] = {}
    for file in sorted(folder.glob("events.*"), key=lambda file: file.stat().st_mtime_ns):
        board = EventAccumulator(str(file), size_guidance={"scalars": 0})
        board.Reload()
        values |= {e.step: e.value for e in board.Scalars(tag)} if tag in board.Tags()["scalars"] else {}
    return sorted(values.items())
