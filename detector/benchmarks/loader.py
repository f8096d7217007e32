"""The rates of the image loader and of the training step, alone and together, with and without loader workers."""

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from detector.benchmarks.timing import synchronize
from detector.build import build_dataset, build_trained_model, build_trainer
from detector.config import load_config
from detector.engine.trainer import Trainer


def batches_of(trainer: Trainer):
    """Yield the batches of each step, epoch after epoch without end."""
    epoch = 0
    while True:
        yield from trainer.batches(epoch)
        epoch += 1


def measure(trainer: Trainer, steps: int, *, load: bool, step: bool) -> list[float]:
    """Return the seconds of each step. Two steps before the measurement are a warm-up.

    Args:
        trainer: the trainer with the loader and the model.
        steps: the number of steps.
        load: whether each step loads new batches. Otherwise every step uses the same batches.
        step: whether each step trains.
    """
    trainer.model.train()
    source = batches_of(trainer)
    batches, seconds = next(source), []
    for i in range(steps + 2):
        synchronize()
        started = time.perf_counter()
        if load:
            batches = next(source)
        if step:
            trainer.step(batches)
        synchronize()
        if i >= 2:
            seconds.append(time.perf_counter() - started)
    return seconds


def run(*, cfg: str, overrides: list[str], workers: list[int], steps: int, rounds: int) -> dict:
    """Measure images per second of the step alone, and of the loader alone and both for each number of workers.

    Args:
        cfg: the name or path of the config.
        overrides: config values as key.path=value.
        workers: the numbers of loader workers, which alternate.
        steps: the number of measured steps.
        rounds: the number of measurements of each number of workers.
    """
    trainers = {}
    with TemporaryDirectory() as folder:
        for count in workers:
            config = load_config(cfg, [*overrides, f"data.num_workers={count}"])
            train = build_dataset(config, "train")
            model = build_trained_model(config, train)
            trainers[count] = build_trainer(config, model, train, train, Path(folder))
        seconds_per_step: dict[str, list[float]] = {}
        for _ in range(rounds):
            for count, trainer in trainers.items():
                for name, parts in (
                    ("the step alone", {"load": False, "step": True}),
                    (f"the loader alone, {count} workers", {"load": True, "step": False}),
                    (f"both, {count} workers", {"load": True, "step": True}),
                ):
                    seconds = measure(trainer, steps, **parts)
                    # the mean, because a worker delivers several batches together
                    seconds_per_step.setdefault(name, []).append(sum(seconds) / len(seconds))
    images = config.train.batch_size * config.train.accumulation
    base = median(seconds_per_step["the step alone"])
    rows = [
        {"name": name, "images_s": images / median(times), "times_step": base / median(times)}
        for name, times in seconds_per_step.items()
    ]
    return {"benchmark": "loader", "cfg": Path(cfg).name, "threads": torch.get_num_threads(), "rows": rows}
