"""The training loop."""

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from detector.engine.checkpoint import VERSION, save_checkpoint
from detector.engine.interrupt import Interrupt
from detector.engine.outcome import save_evaluation
from detector.engine.precision import autocast
from detector.engine.run_folder import RunFolder
from detector.errors import Interrupted, UserError
from detector.imbalance.initial import expected_initial_loss
from detector.imbalance.meters import foreground_gradient_share, measure, meter_names, warnings
from detector.losses.criterion import Criterion
from detector.models.heads import is_untrained
from detector.structures import Batch, Predictions, Targets

log = logging.getLogger(__name__)


class NonFiniteLoss(UserError):
    """The loss or its gradient is not a finite number; the weights are those of the step before."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long, and how often: epochs of `steps_per_epoch` optimiser steps, each of `accumulation` batches."""

    epochs: int
    steps_per_epoch: int
    accumulation: int
    evaluate_every: int
    log_every: int
    meter_every: int

    @property
    def num_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def evaluates_after(self, epoch: int) -> bool:
        last = epoch == self.epochs - 1
        return last or (self.evaluate_every > 0 and (epoch + 1) % self.evaluate_every == 0)


def make_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and buffers whose decay warms up as (1 + n) / (10 + n)."""

    def average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        n = int(num_averaged)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        if averaged[0].is_floating_point():  # the tensors of one call share their format
            torch._foreach_lerp_(averaged, current, weight)
        else:
            torch._foreach_copy_(averaged, current)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


class Trainer:
    """Trains `model` and keeps a run folder. All state that outlives a step is in `state()`.

    `rate(step)` is the learning rate; `evaluate(model)` returns a validation's metrics, `AP` among them, and its
    detections; `prior` is the score that untrained anchors should have; `description` holds what a checkpoint says
    about its model (config, class_names, category_ids).
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        assigner: Callable[[Tensor, Tensor, Tensor, Tensor, tuple[int, ...]], Targets],
        optimizer: torch.optim.Optimizer,
        loader: DataLoader,
        *,
        schedule: Schedule,
        rate: Callable[[int], float],
        evaluate: Callable[[nn.Module], tuple[dict, list[dict]]],
        description: dict,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        clip_norm: float | None,
        ema_decay: float | None,
        prior: float,
    ):
        self.model = model
        self.criterion = criterion
        self.assigner = assigner
        self.optimizer = optimizer
        self.loader = loader
        self.schedule = schedule
        self.rate = rate
        self.evaluate = evaluate
        self.description = description
        self.folder = folder
        self.device = device
        self.dtype = dtype
        self.prior = prior
        self.clip_norm = math.inf if clip_norm is None else clip_norm
        self.average = None if ema_decay is None else make_average(model, ema_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.steps_done = 0
        self.epochs_done = 0  # evaluations included: a run interrupted at an epoch's last step still owes its own
        self.best_ap = -math.inf
        first, last = model.levels
        self.meter_names = meter_names([f"P{level}" for level in range(first, last + 1)], description["class_names"])
        self.warned: set[str] = set()

    @property
    def evaluated_model(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """One optimiser step on the batches of one accumulation; what the step measured, as device tensors."""
        batches = [batch.to(self.device) for batch in batches]
        targets = [self._assign(batch) for batch in batches]
        num_fg = self.criterion.count_foreground(targets)
        normaliser = self.criterion.normalise(num_fg)
        expected = self._expected_loss(batches, targets, normaliser) if self.steps_done == 0 else None
        measured = []
        for batch, target in zip(batches, targets, strict=True):
            with autocast(self.device, self.dtype):
                predictions = self.model(batch.images)
            predictions.logits.retain_grad()
            terms = self.criterion(predictions, target, normaliser, len(batches))
            self.scaler.scale(terms["cls"] + terms["box"]).backward()
            share = foreground_gradient_share(predictions.logits.grad, target.labels) / len(batches)
            measured.append({"loss": (terms["cls"] + terms["box"]).detach(), **terms, "fg_gradient_share": share})
        sums = {name: torch.stack([m[name].detach() for m in measured]).sum() for name in measured[0]}
        if expected is not None:
            log.info("step 0: classification loss %.5g; the initial scores promise %.5g", sums["cls"], expected)

        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        sums |= {"grad_norm": norm, "num_fg": num_fg}
        if self.steps_done % self.schedule.meter_every == 0:
            sums |= self._measure(predictions, target)
        # fp16's scaler meets infinite gradients as a matter of course and skips such a step itself
        finite = sums["loss"].isfinite() if self.scaler.is_enabled() else (sums["loss"] + norm).isfinite()
        if not finite:
            self._refuse(batches, sums)

        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.steps_done)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.steps_done += 1
        return sums

    def _assign(self, batch: Batch) -> Targets:
        anchors, level_sizes = self.model.anchors(batch.images.shape[-2:], batch.images.device)
        return self.criterion.sample(self.assigner(anchors, batch.boxes, batch.labels, batch.ignore, level_sizes))

    def _measure(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """The meters of a step, read from its last batch."""
        logits, sizes = predictions.logits.detach(), predictions.level_sizes
        quality = self.criterion.quality(predictions, targets)
        elements = self.criterion.classification.elements(logits, targets.labels, level_sizes=sizes, quality=quality)
        values = measure(logits, predictions.logits.grad, elements.detach(), targets.labels, sizes)
        return dict(zip(self.meter_names, values.unbind(), strict=True))

    def _expected_loss(self, batches: list[Batch], targets: list[Targets], normaliser: Tensor) -> float | None:
        if not is_untrained(self.model.class_head):
            return None
        losses = [
            expected_initial_loss(
                self.criterion,
                target,
                *self.model.anchors(batch.images.shape[-2:], batch.images.device),
                normaliser,
                self.prior,
                len(batches),
            )
            for batch, target in zip(batches, targets, strict=True)
        ]
        return float(sum(losses))

    def _refuse(self, batches: list[Batch], sums: dict[str, Tensor]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        terms = ", ".join(f"{name} {float(value):g}" for name, value in sums.items())
        names = ", ".join(name for batch in batches for name in batch.file_names)
        raise NonFiniteLoss(
            f"step {self.steps_done}: the loss or its gradient is not finite ({terms}) on {names}; lower "
            "train.lr, set train.clip_norm or train.precision=fp32, and continue the last checkpoint with --resume auto"
        )

    def train(self) -> None:
        """From `steps_done` to the end of the schedule."""
        schedule = self.schedule
        with (
            RunFolder(self.folder, num_steps=schedule.num_steps, first_step=self.steps_done) as folder,
            Interrupt() as interrupt,
        ):
            while self.epochs_done < schedule.epochs:
                epoch = self.epochs_done
                self._epoch(epoch, self.steps_done - epoch * schedule.steps_per_epoch, folder, interrupt)
                if interrupt.exit_code is not None:
                    self.save("last")
                    log.info("interrupted after step %d; continue with --resume auto", self.steps_done)
                    raise Interrupted(interrupt.exit_code)
                if schedule.evaluates_after(epoch):
                    self._evaluate(epoch, folder)
                self.epochs_done += 1
                self.save("last")

    def _epoch(self, epoch: int, offset: int, folder: RunFolder, interrupt: Interrupt) -> None:
        self.model.train()
        rows, since, num_images = [], time.perf_counter(), 0
        try:
            for batches in self._batches(epoch, offset):
                rows.append({"step": self.steps_done, "lr": self.rate(self.steps_done), **self.step(batches)})
                num_images += sum(len(b.image_ids) for b in batches)
                if self.steps_done % self.schedule.log_every == 0:
                    self._log(epoch, rows, num_images / (time.perf_counter() - since), folder)
                    rows, since, num_images = [], time.perf_counter(), 0
                if interrupt.exit_code is not None:
                    return
        finally:  # a step that is refused must not take the record of those before it along
            if rows:
                self._log(epoch, rows, num_images / (time.perf_counter() - since), folder)

    def _batches(self, epoch: int, offset: int) -> Iterator[list[Batch]]:
        """The optimiser steps of an epoch from `offset` on; a step is a list of `accumulation` batches."""
        sampler, accumulation = self.loader.batch_sampler, self.schedule.accumulation
        sampler.epoch, sampler.first_batch = epoch, offset * accumulation
        batches = iter(self.loader)
        for _ in range(offset, self.schedule.steps_per_epoch):
            yield list(islice(batches, accumulation))

    def _log(self, epoch: int, rows: list[dict], images_per_s: float, folder: RunFolder) -> None:
        tensors = [[value.float() for value in row.values() if torch.is_tensor(value)] for row in rows]
        numbers = iter(torch.stack([value for row in tensors for value in row]).tolist())  # one wait for all of them
        rows = [{key: next(numbers) if torch.is_tensor(value) else value for key, value in row.items()} for row in rows]
        for row in rows:
            if self.meter_names[0] in row:
                self._warn(row)
        unmeasured = dict.fromkeys(self.meter_names)
        last = {"images_per_s": images_per_s}
        folder.record([{k: v for k, v in row.items() if k not in unmeasured} | last | unmeasured | row for row in rows])
        mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if name not in unmeasured}
        left = (self.schedule.num_steps - self.steps_done) / self.schedule.steps_per_epoch
        per_epoch = self.schedule.steps_per_epoch * self.schedule.accumulation * self.loader.batch_sampler.batch_size
        folder.show(
            self.steps_done,
            f"epoch {epoch + 1}/{self.schedule.epochs}  loss {mean['loss']:.4f} (cls {mean['cls']:.4f} = fg "
            f"{mean['cls_fg']:.4f} + bg {mean['cls_bg']:.4f}, box {mean['box']:.4f})  fg {mean['num_fg']:.0f}  "
            f"fg gradient {mean['fg_gradient_share']:.0%}  {images_per_s:.1f} images/s  "
            f"ETA {left * per_epoch / images_per_s:.0f} s",
        )

    def _warn(self, row: dict[str, float]) -> None:
        """Once of each kind, and not before a tenth of the run: a detector starts out telling nothing apart."""
        if row["step"] >= max(100, self.schedule.num_steps // 10):
            for kind, text in warnings(row).items():
                if kind not in self.warned:
                    log.warning("warning: step %d: %s", row["step"], text)
            self.warned |= warnings(row).keys()

    def _evaluate(self, epoch: int, folder: RunFolder) -> None:
        metrics, detections = self.evaluate(self.evaluated_model)
        save_evaluation(self.folder, metrics, detections)
        folder.record_evaluation(self.steps_done, metrics)
        log.info("epoch %d/%d  AP %.4f  AP50 %.4f", epoch + 1, self.schedule.epochs, metrics["AP"], metrics["AP50"])
        if metrics["AP"] > self.best_ap or self.best_ap == -math.inf:  # NaN, no ground truth, is kept once
            self.best_ap = metrics["AP"]
            self.save("best")

    def state(self) -> dict:
        """Everything that the remaining steps depend on, as tensors and plain containers."""
        python = random.getstate()
        numpy = np.random.get_state()
        return {
            "model": self.model.state_dict(),
            "average_updates": 0 if self.average is None else int(self.average.n_averaged),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "criterion": self.criterion.state_dict(),
            "steps_per_epoch": self.schedule.steps_per_epoch,
            "steps_done": self.steps_done,
            "epochs_done": self.epochs_done,
            "best_ap": self.best_ap,
            "random": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
                "numpy": [numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:]],
                "python": [python[0], list(python[1]), python[2]],
            },
        }

    def save(self, name: str) -> None:
        """checkpoints/<name>.pt: `model` is what is evaluated (the average where there is one). Only `last` can be
        resumed, so only it carries the training state."""
        contents = {"version": VERSION, **self.description, "model": self.evaluated_model.state_dict()}
        if name == "last":
            contents["training"] = self.state()
        save_checkpoint(self.folder / "checkpoints" / f"{name}.pt", contents)

    def resume(self, checkpoint: dict, origin: Path) -> None:
        """Continue from a checkpoint's training state. Raises UserError where it has none or it belongs elsewhere."""
        state = checkpoint.get("training")
        if state is None:
            raise UserError(f"{origin} has no training state; resume from checkpoints/last.pt")
        for key in ("class_names", "category_ids"):
            if list(checkpoint[key]) != list(self.description[key]):
                raise UserError(f"{origin} was trained on other classes ({', '.join(map(str, checkpoint[key]))[:80]})")
        if state["steps_per_epoch"] != self.schedule.steps_per_epoch:
            raise UserError(
                f"{origin} counts {state['steps_per_epoch']} steps an epoch, this config "
                f"{self.schedule.steps_per_epoch}; resume with the run's own data, batch size and accumulation"
            )
        try:
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.module.load_state_dict(checkpoint["model"])
                self.average.n_averaged.fill_(state["average_updates"])
            self.criterion.load_state_dict(state["criterion"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            line = (str(error).splitlines() or [""])[0]
            raise UserError(f"{origin} does not fit this config ({line}); resume with the run's config.yaml") from error
        self.steps_done = state["steps_done"]
        self.epochs_done = state["epochs_done"]
        if (self.folder / "checkpoints" / "best.pt").is_file():
            self.best_ap = state["best_ap"]
        rng = state["random"]
        torch.set_rng_state(rng["torch"])
        if rng["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], self.device)
        name, keys, *rest = rng["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        version, internal, gauss = rng["python"]
        random.setstate((version, tuple(internal), gauss))
