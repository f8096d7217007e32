"""The training loop."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detector.core.distributed import gather, rank, sum_over_ranks, world_size
from detector.core.errors import Interrupted, UserError
from detector.core.files import write_json
from detector.core.structures import Batch, Predictions, Targets
from detector.core.torch_errors import is_out_of_memory
from detector.data.pipeline.loader import Loader
from detector.engine.average import Average
from detector.engine.checkpoint import VERSION, save_checkpoint
from detector.engine.guard import Faults, Guard, Kept, batch_norms
from detector.engine.interrupt import Interrupt
from detector.engine.optimization import load_optimizer
from detector.engine.outcome import save_evaluation
from detector.engine.precision import autocast
from detector.engine.random_state import random_state, restore_random_state
from detector.engine.readback import Readback
from detector.engine.resume import changes_metrics, compare_runs, load_criterion
from detector.engine.run_folder import RunFolder
from detector.imbalance.initial import expected_initial_loss
from detector.imbalance.meters import gradient_sums, measure, meter_names, ratio, read, warnings
from detector.losses.criterion import Criterion
from detector.models.heads.anchors import is_untrained

log = logging.getLogger(__name__)
MAX_REFUSED = 20  # steps in a row
OWN = ("rank_loss", "logit_min", "logit_max")  # of this process's batches; the other numbers are of the whole step


class RefusedStep(UserError):
    """The loss or its gradient was not a finite number, or the loss leapt; the weights are as they were before."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long, and how often: epochs of `steps_per_epoch` optimiser steps, each of `accumulation` batches."""

    epochs: int
    steps_per_epoch: int
    accumulation: int
    evaluate_every: int
    log_every: int
    meter_every: int
    save_every: int

    @property
    def num_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def evaluates_after(self, epoch: int) -> bool:
        last = epoch == self.epochs - 1
        return last or (self.evaluate_every > 0 and (epoch + 1) % self.evaluate_every == 0)


class Trainer:
    """Trains `model` and keeps a run folder. All state that outlives a step is in `state()`.

    `rate(step)` is the learning rate; `evaluate(model)` returns a validation's metrics, `AP` among them, and its
    detections; `prior` is the score that untrained anchors should have; `description` holds what a checkpoint says
    about its model (config, class_names, category_ids, and data: the fingerprint of each split).
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        assigner: Callable[[Tensor, Tensor, Tensor, Tensor, tuple[int, ...]], Targets],
        optimizer: torch.optim.Optimizer,
        loader: Loader,
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
        faults: Faults,
        keep_checkpoints: int,
        compiled: bool,
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
        self.clip_norm = clip_norm
        self.faults = faults
        self.keep_checkpoints = keep_checkpoints
        self.replica = replicate(torch.compile(model, dynamic=False) if compiled else model)
        self.average = None if ema_decay is None else Average(model, ema_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.guard = Guard(faults.spike_factor).to(device)
        self.moving = (*batch_norms(model), criterion)  # whose buffers move with each step
        self.readback = Readback(device)
        self.interrupt = Interrupt()
        self.steps_done = 0
        self.epochs_done = 0  # evaluations included: a run interrupted at an epoch's last step still owes its own
        self.best_ap = -math.inf
        self.splits = 1  # of each batch, since the whole did not fit into the memory
        self.refused_in_a_row = 0
        self.unreadable: dict[str, None] = {}  # the errors of images that others stand in for, each once
        first, last = model.levels
        self.meter_names = meter_names([f"P{level}" for level in range(first, last + 1)], description["class_names"])
        self.warned: set[str] = set()

    @property
    def evaluated_model(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """One optimiser step on this rank's batches of one accumulation; what the step of all ranks measured, as 0-dim
        device tensors. Where `refused` is 1, weights, their average, optimiser and buffers are as before."""
        batches = [batch.to(self.device) for batch in batches]
        kept = Kept(*self.moving)
        targets = [self._assign(batch) for batch in batches]
        num_fg = self.criterion.count_foreground(targets)
        normaliser = self.criterion.normalise(num_fg)
        expected = self._expected_loss(batches, targets, normaliser) if self.steps_done == 0 else None
        measured, ranges, meters = [], [], []
        for i, (batch, target) in enumerate(zip(batches, targets, strict=True)):
            with summed_gradients(self.replica, last=i == len(batches) - 1):
                with autocast(self.device, self.dtype):
                    predictions = self.replica(batch.images)
                predictions.logits.retain_grad()
                terms = self.criterion(predictions, target, normaliser, len(batches))
                loss = terms["cls"] + terms["box"]
                self.scaler.scale(loss).backward()
            pull_fg, pull = gradient_sums(predictions.logits.grad, target.labels)
            measured.append({"loss": loss, **terms, "fg_gradient_share": pull_fg, "pull": pull})
            ranges.append(torch.stack(predictions.logits.detach().aminmax()))
            if self.steps_done % self.schedule.meter_every == 0:
                meters.append(self._measure(predictions, target))
        own = {name: torch.stack([m[name].detach() for m in measured]).sum() for name in measured[0]}
        own |= {"num_fg": num_fg, "interrupted": torch.full_like(num_fg, self.interrupt.exit_code is not None)}
        sums = dict(zip(own, sum_over_ranks(torch.stack(list(own.values()))).unbind(), strict=True))
        sums["fg_gradient_share"] = ratio(sums["fg_gradient_share"], sums.pop("pull"))
        if expected is not None:
            log.info("step 0: classification loss %.5g; the initial scores promise %.5g", sums["cls"], expected)

        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_norm, norm)
        # fp16's scaler meets infinite gradients as a matter of course: such a step is skipped, not refused
        fine = sums["loss"] if self.scaler.is_enabled() else sums["loss"].where(norm.isfinite(), math.nan)
        refused = self.guard.refuses(fine)
        low, high = torch.stack(ranges).unbind(dim=1)
        sums |= {"grad_norm": norm, "refused": refused, "rank_loss": own["loss"]}
        sums |= {"logit_min": low.amin(), "logit_max": high.amax()}
        if meters:
            values = read(sum_over_ranks(torch.stack(meters).sum(dim=0)))
            sums |= dict(zip(self.meter_names, values.unbind(), strict=True))

        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.steps_done)
        # what GradScaler.step tells a fused optimiser, which then leaves everything alone without asking the host
        taken = ~refused & norm.isfinite()
        self.optimizer.grad_scale, self.optimizer.found_inf = None, (~taken).float()
        self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        kept.restore(refused)
        if self.average is not None:
            self.average.update(self.model, taken)
        self.steps_done += 1
        return sums

    def _assign(self, batch: Batch) -> Targets:
        anchors, level_sizes = self.model.anchors(batch.images.shape[-2:], batch.images.device)
        return self.criterion.sample(self.assigner(anchors, batch.boxes, batch.labels, batch.ignore, level_sizes))

    def _measure(self, predictions: Predictions, targets: Targets) -> Tensor:
        """What a batch adds to the meters of its step."""
        logits, sizes = predictions.logits.detach(), predictions.level_sizes
        quality = self.criterion.quality(predictions, targets)
        elements = self.criterion.classification.elements(logits, targets.labels, level_sizes=sizes, quality=quality)
        return measure(logits, predictions.logits.grad, elements.detach(), targets.labels, sizes)

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
        return float(sum_over_ranks(torch.stack(losses).sum()))

    def _within_memory(self, batches: list[Batch]) -> dict[str, Tensor]:
        """A step, on halved batches where they do not fit into the memory whole."""
        while True:
            kept = Kept(*self.moving)
            try:
                return self.step([part for batch in batches for part in batch.split(self.splits)])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                said = str(error).splitlines()[0]
            # outside of the handler, which keeps the failed step's tensors alive
            kept.restore()
            self.optimizer.zero_grad(set_to_none=True)
            size, *shape = batches[0].images.shape
            at_a_time = -(-size // self.splits)
            what = f"out of memory at step {self.steps_done}, {at_a_time} images of {shape} at a time ({said})"
            if self.faults.out_of_memory == "stop" or world_size() > 1 or self.splits >= size:
                raise UserError(
                    f"{what}; lower train.batch_size, with train.accumulation as many times higher, or data.short_side"
                    + ("" if world_size() > 1 else "; faults.out_of_memory=halve does the first by itself")
                )
            self.splits *= 2
            log.warning("%s: each batch goes in %d parts from here on", what, self.splits)

    def train(self) -> None:
        """From `steps_done` to the end of the schedule."""
        schedule = self.schedule
        with (
            RunFolder(self.folder, num_steps=schedule.num_steps, first_step=self.steps_done)
            if rank() == 0
            else nullcontext() as folder,
            self.interrupt,
        ):
            while self.epochs_done < schedule.epochs:
                epoch = self.epochs_done
                self._epoch(epoch, self.steps_done - epoch * schedule.steps_per_epoch, folder)
                if schedule.evaluates_after(epoch):
                    self.save("last")
                    with self.interrupt.at_once():  # what is saved still owes the evaluation
                        self._evaluate(epoch, folder)
                self.epochs_done += 1
                self.save("last")

    def _epoch(self, epoch: int, offset: int, folder: RunFolder | None) -> None:
        self.model.train()
        rows: list[dict] = []
        since = time.perf_counter()

        def show() -> None:
            nonlocal since
            if rows and folder is not None:
                self._log(epoch, rows, len(rows) / (time.perf_counter() - since), folder)
            rows.clear()
            since = time.perf_counter()

        stop = False
        try:
            for batches in self.batches(epoch, offset):
                about = self.steps_done, self.rate(self.steps_done), batches
                self.readback.send(about, self._within_memory(batches))
                stop = self._receive(rows)
                if self.steps_done % self.schedule.log_every == 0:
                    show()
                if stop:
                    break
                if self.schedule.save_every and self.steps_done % self.schedule.save_every == 0:
                    self._receive(rows, everything=True)
                    show()
                    self.save("last")
            self._receive(rows, everything=True)
        finally:  # a step that is refused must not take the record of those before it along
            show()
        if stop:
            self.save("last")
            log.info("interrupted after step %d; continue with --resume auto", self.steps_done)
            raise Interrupted(self.interrupt.exit_code or 143)

    def batches(self, epoch: int, offset: int = 0) -> Iterator[list[Batch]]:
        """The optimiser steps of an epoch from `offset` on; a step is a list of `accumulation` batches."""
        accumulation = self.schedule.accumulation
        batches = self.loader.epoch(epoch, first_batch=offset * accumulation)
        for _ in range(offset, self.schedule.steps_per_epoch):
            step = list(islice(batches, accumulation))
            self._count_unreadable(step)
            yield step

    def _count_unreadable(self, batches: list[Batch]) -> None:
        for error in (error for batch in batches for error in batch.unreadable):
            if error not in self.unreadable:
                log.warning("%s (another image stands in for it)", error)
                self.unreadable[error] = None
        if len(self.unreadable) > self.faults.max_unreadable:
            last = list(self.unreadable)[-1]
            raise UserError(
                f"faults.max_unreadable: {len(self.unreadable)} images cannot be read (the last: {last})",
                "replace them",
            )

    def _receive(self, rows: list[dict], everything: bool = False) -> bool:
        """Adds the steps whose numbers have come to `rows`; whether a process was told to stop."""
        stop = False
        for (step, rate, batches), numbers in self.readback.receive(everything):
            stop |= numbers.pop("interrupted") > 0
            own = {name: numbers.pop(name) for name in OWN}
            rows.append({"step": step, "lr": rate, **numbers})
            self.refused_in_a_row = self.refused_in_a_row + 1 if numbers["refused"] else 0
            if numbers["refused"]:
                self._refuse(step, batches, numbers | own)
        return stop

    def _refuse(self, step: int, batches: list[Batch], numbers: dict[str, float]) -> None:
        """Leaves a record of a refused step; raises RefusedStep where it must not be skipped."""
        names = ("loss", "cls", "box", "grad_norm", "num_fg", *OWN)
        about = {
            "step": step,
            "rank": rank(),
            "image_ids": [i for batch in batches for i in batch.image_ids],
            "file_names": [name for batch in batches for name in batch.file_names],
            "numbers": {name: str(numbers[name]) for name in names},  # JSON knows neither inf nor nan
        }
        path = self.folder / "refused" / f"step_{step}_rank_{rank()}.json"
        write_json(path, about)
        leapt = math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"])
        what = (
            f"step {step}: the loss {numbers['loss']:g} is over {self.faults.spike_factor:g} times its running mean"
            if leapt
            else f"step {step}: the loss or its gradient is not finite (loss {numbers['loss']:g}, cls "
            f"{numbers['cls']:g}, box {numbers['box']:g}, gradient {numbers['grad_norm']:g})"
        )
        what += f" on {', '.join(about['file_names'])}; see {path}"
        remedy = "lower train.lr, set train.clip_norm or train.precision=fp32, and continue with --resume auto"
        if self.faults.bad_step == "stop":
            raise RefusedStep(what, f"{remedy}, or skip such steps by faults.bad_step=skip")
        if self.refused_in_a_row > MAX_REFUSED:
            raise RefusedStep(f"{what}; so were the {MAX_REFUSED} before it", remedy)
        log.warning("%s: skipped, the weights are as before", what)

    def _log(self, epoch: int, rows: list[dict], steps_per_s: float, folder: RunFolder) -> None:
        images_per_s = steps_per_s * self.schedule.accumulation * self.loader.batches.batch_size
        for row in rows:
            if self.meter_names[0] in row:
                self._warn(row)
        unmeasured = dict.fromkeys(self.meter_names)
        last = {"images_per_s": images_per_s}
        folder.record([{k: v for k, v in row.items() if k not in unmeasured} | last | unmeasured | row for row in rows])
        taken = [row for row in rows if not row["refused"]] or rows
        mean = {name: sum(row[name] for row in taken) / len(taken) for name in rows[0] if name not in unmeasured}
        folder.show(
            self.steps_done,
            f"epoch {epoch + 1}/{self.schedule.epochs}  loss {mean['loss']:.4f} (cls {mean['cls']:.4f} = fg "
            f"{mean['cls_fg']:.4f} + bg {mean['cls_bg']:.4f}, box {mean['box']:.4f})  fg {mean['num_fg']:.0f}  "
            f"fg gradient {mean['fg_gradient_share']:.0%}  {images_per_s:.1f} images/s  "
            f"ETA {(self.schedule.num_steps - self.steps_done) / steps_per_s:.0f} s",
        )

    def _warn(self, row: dict[str, float]) -> None:
        """Once of each kind, and not before a tenth of the run: a detector starts out telling nothing apart."""
        if row["step"] >= max(100, self.schedule.num_steps // 10):
            for kind, text in warnings(row).items():
                if kind not in self.warned:
                    log.warning("warning: step %d: %s", row["step"], text)
            self.warned |= warnings(row).keys()

    def _evaluate(self, epoch: int, folder: RunFolder | None) -> None:
        metrics, detections = self.evaluate(self.evaluated_model)
        if folder is not None:
            save_evaluation(self.folder, metrics, detections)
            folder.record_evaluation(self.steps_done, metrics)
        log.info("epoch %d/%d  AP %.4f  AP50 %.4f", epoch + 1, self.schedule.epochs, metrics["AP"], metrics["AP50"])
        if metrics["AP"] > self.best_ap or self.best_ap == -math.inf:  # NaN, no ground truth, is kept once
            self.best_ap = metrics["AP"]
            self.save("best")

    def state(self) -> dict:
        """Everything that the remaining steps depend on, as tensors and plain containers; whole on rank 0."""
        return {
            "model": self.model.state_dict(),
            "average_updates": 0 if self.average is None else int(self.average.updates),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "criterion": self.criterion.state_dict(),
            "guard": self.guard.state_dict(),
            "steps_per_epoch": self.schedule.steps_per_epoch,
            "steps_done": self.steps_done,
            "epochs_done": self.epochs_done,
            "best_ap": self.best_ap,
            "splits": self.splits,
            "unreadable": gather(list(self.unreadable)),
            "random": gather(random_state(self.device)),
        }

    def save(self, name: str) -> None:
        """checkpoints/<name>.pt: `model` is what is evaluated (the average where there is one). Only `last` can be
        resumed, so only it carries the training state."""
        contents = {"version": VERSION, **self.description, "model": self.evaluated_model.state_dict()}
        if name == "last":
            contents["training"] = self.state()
        if rank() == 0:
            keep = self.keep_checkpoints if name == "last" else 1
            save_checkpoint(self.folder / "checkpoints" / f"{name}.pt", contents, keep)

    def resume(self, checkpoint: dict, origin: Path) -> None:
        """Continue from a checkpoint's training state. Raises UserError where it has none or it belongs elsewhere."""
        state = checkpoint.get("training")
        if state is None:
            raise UserError(f"{origin} has no training state", "resume from checkpoints/last.pt")
        changes = compare_runs(checkpoint, self.description, self.schedule.steps_per_epoch, origin)
        is_of_this_loss = not any(key.partition(".")[0] == "loss" for key in changes)
        try:
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.module.load_state_dict(checkpoint["model"])
                self.average.updates.fill_(state["average_updates"])
            fresh = load_criterion(self.criterion, state["criterion"], set(changes))
            load_optimizer(self.optimizer, state["optimizer"])
            if state["scaler"]:  # empty where the run was not in fp16
                self.scaler.load_state_dict(state["scaler"])
            if is_of_this_loss:  # else its mean is that of another loss
                self.guard.load_state_dict(state["guard"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            line = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise UserError(
                f"{origin} does not fit this config ({line})", "resume with the run's config.yaml"
            ) from error
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
        if changes and rank() == 0:
            log.warning("warning: going on with other settings than %s: %s", origin, "; ".join(changes.values()))
        if "model.weights" in changes and rank() == 0:
            log.warning("warning: model.weights is not loaded: the run continues with the weights of %s", origin)
        if changes_metrics(changes) and rank() == 0:
            log.warning(
                "warning: the best AP so far was measured with other settings: the next evaluation replaces best.pt"
            )
        if fresh and rank() == 0:
            log.warning("warning: %s: what the loss had measured so far does not fit; it starts anew", ", ".join(fresh))
        self.steps_done = state["steps_done"]
        self.epochs_done = state["epochs_done"]
        if (self.folder / "checkpoints" / "best.pt").is_file() and not changes_metrics(changes):
            self.best_ap = state["best_ap"]
        self.splits = state["splits"]
        if len(state["random"]) == world_size():
            restore_random_state(state["random"][rank()], self.device)
            self.unreadable = dict.fromkeys(state["unreadable"][rank()])
        else:
            log.warning(
                "%s was written by %d processes, %d continue: the order of the images and their pixels stay; sums are "
                "added in another order and random numbers drawn anew, so that the last digits will differ",
                origin,
                len(state["random"]),
                world_size(),
            )


def replicate(model: nn.Module) -> nn.Module:
    """The model as PyTorch's DistributedDataParallel where there are several processes. Gradients are summed, since the
    criterion's losses add up over the ranks."""
    if world_size() == 1:
        return model
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True)

    def add(_: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        summed = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
        return summed.get_future().then(lambda future: future.value()[0])

    replica.register_comm_hook(None, add)
    return replica


def summed_gradients(replica: nn.Module, *, last: bool) -> AbstractContextManager:
    """Of the batches of one step, the `last` alone brings the gradients of all of them together."""
    return nullcontext() if last or not isinstance(replica, DistributedDataParallel) else replica.no_sync()
