"""Whether images come as fast as the training step takes them: in this process or in workers, alone and together."""

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from detector.benchmarks.timing import synchronise
from detector.build import build_dataset, build_trained_model, build_trainer
from detector.config import load_config
from detector.engine.trainer import Trainer


def batches_of(trainer: Trainer):
    """Steps without end, epoch after epoch."""
    epoch = 0
    while True:
        yield from trainer.batches(epoch)
        epoch += 1


def measure(trainer: Trainer, steps: int, *, load: bool, step: bool) -> list[float]:
    """Seconds of each of so many steps: of loading alone, of the step alone on one batch, or of both as in training."""
    trainer.model.train()
    source = batches_of(trainer)
    batches, seconds = next(source), []
    for i in range(steps + 2):
        synchronise()
        started = time.perf_counter()
        if load:
            batches = next(source)
        if step:
            trainer.step(batches)
        synchronise()
        if i >= 2:
            seconds.append(time.perf_counter() - started)
    return seconds


def run(*, cfg: str, overrides: list[str], workers: list[int], steps: int, rounds: int) -> dict:
    """Images a second: the step alone; for each number of workers the loader alone and both together. The numbers of
    workers take turns, `rounds` times."""
    trainers = {}
    with TemporaryDirectory() as folder:
        for count in workers:
            config = load_config(cfg, [*overrides, f"data.num_workers={count}"])
            train = build_dataset(config, "train")
            model = build_trained_model(config, train)
            trainers[count] = build_trainer(config, model, train, train, Path(folder))
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            for count, trainer in trainers.items():
                for name, kinds in (
                    ("the step alone", {"load": False, "step": True}),
                    (f"the loader alone, {count} workers", {"load": True, "step": False}),
                    (f"both, {count} workers", {"load": True, "step": True}),
                ):
                    seconds = measure(trainer, steps, **kinds)
                    # a worker hands several batches on at once: the mean, not the median
                    found.setdefault(name, []).append(sum(seconds) / len(seconds))
    images = config.train.batch_size * config.train.accumulation
    base = median(found["the step alone"])
    rows = [
        {"name": name, "images_s": images / median(times), "times_step": base / median(times)}
        for name, times in found.items()
    ]
    return {"benchmark": "loader", "cfg": Path(cfg).name, "threads": torch.get_num_threads(), "rows": rows}
