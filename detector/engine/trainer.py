"""The training loop: epochs of steps, evaluations, checkpoints, and how a run continues."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

from torch import nn

from detector.core.distributed import gather, rank, world_size
from detector.core.errors import Interrupted, UserError
from detector.core.structures import Batch
from detector.data.pipeline.loader import Loader
from detector.engine.checkpoint import save_checkpoint
from detector.engine.optimization import load_optimizer
from detector.engine.outcome import save_evaluation
from detector.engine.progress import Progress
from detector.engine.random_state import random_state, restore_random_state
from detector.engine.readback import Readback
from detector.engine.refusals import Refusals
from detector.engine.resume import changes_metrics, compare_runs, load_criterion
from detector.engine.run_folder import RunFolder
from detector.engine.step import TrainingStep
from detector.evaluation.metrics import Metrics
from detector.old_versions import CHECKPOINT_VERSION

log = logging.getLogger(__name__)
RANK_NUMBERS = ("rank_loss", "logit_min", "logit_max")  # of this process's batches; the others are of the whole step


class Trainer:
    """Trains a model and leaves a run folder. All state that outlives a step is in `state()`."""

    def __init__(
        self,
        step: TrainingStep,
        loader: Loader,
        *,
        evaluate: Callable[[nn.Module], tuple[Metrics, list[dict]]],
        description: dict,
        folder: Path,
    ):
        """Args:
        step: takes the optimizer steps. It knows the model, the losses and the settings.
        loader: gives the training batches of each epoch.
        evaluate: returns the metrics of a model on the validation set, `AP` among them, and its detections.
        description: what a checkpoint tells about its model: config, class_names, category_ids, and `data`, the
            fingerprint of each split.
        folder: the run folder.
        """
        self.step = step
        self.loader = loader
        self.evaluate = evaluate
        self.description = description
        self.folder = folder
        self.model = step.model
        self.criterion = step.criterion
        self.schedule = step.schedule
        self.settings = step.settings
        self.refusals = Refusals(folder, step.faults)
        self.readback = Readback(step.device)
        self.epochs_done = 0  # evaluations included: a run interrupted at an epoch's last step still owes its own
        self.best_ap = -math.inf
        self.unreadable: dict[str, None] = {}  # the errors of images that others stand in for, each once

    @property
    def steps_done(self) -> int:
        return self.step.steps_done

    @property
    def evaluated_model(self) -> nn.Module:
        return self.model if self.step.average is None else self.step.average.module

    def train(self) -> None:
        """Train from `steps_done` to the end of the schedule."""
        schedule = self.schedule
        with (
            RunFolder(
                self.folder,
                num_steps=schedule.num_steps,
                first_step=self.steps_done,
                loggers=self.settings.loggers,
            )
            if rank() == 0
            else nullcontext() as folder,
            self.step.interrupt,
        ):
            progress = Progress(
                schedule, folder, term_names=self.criterion.term_names, meter_names=self.step.meter_names
            )
            while self.epochs_done < self.settings.epochs:
                epoch = self.epochs_done
                self._epoch(epoch, progress)
                if schedule.evaluates_after(epoch):
                    self.save("last")
                    with self.step.interrupt.at_once():  # what is saved still owes the evaluation
                        self._evaluate(epoch, folder)
                self.epochs_done += 1
                self.save("last")

    def _epoch(self, epoch: int, progress: Progress) -> None:
        """Take the steps that are left of an epoch."""
        self.model.train()
        progress.restart()
        is_stopped = False
        try:
            for batches in self.batches(epoch, self.steps_done - epoch * self.schedule.steps_per_epoch):
                what = self.steps_done, self.schedule.rate(self.steps_done), batches
                self.readback.send(what, self.step(batches))
                is_stopped = self._receive(progress)
                if self.steps_done % self.settings.log_every == 0:
                    progress.show(epoch, self.steps_done)
                if is_stopped:
                    break
                if self.settings.save_every and self.steps_done % self.settings.save_every == 0:
                    self._receive(progress, everything=True)
                    progress.show(epoch, self.steps_done)
                    self.save("last")
            self._receive(progress, everything=True)
        finally:  # a step that is refused must not take the record of those before it along
            progress.show(epoch, self.steps_done)
        if is_stopped:
            self.save("last")
            log.info("interrupted after step %d; continue with --resume auto", self.steps_done)
            raise Interrupted(self.step.interrupt.exit_code or 143)

    def batches(self, epoch: int, offset: int = 0) -> Iterator[list[Batch]]:
        """Yield the optimizer steps of an epoch from `offset` on; a step is a list of `accumulation` batches."""
        accumulation = self.settings.accumulation
        batches = self.loader.epoch(epoch, first_batch=offset * accumulation)
        for _ in range(offset, self.schedule.steps_per_epoch):
            of_step = list(islice(batches, accumulation))
            self._count_unreadable(of_step)
            yield of_step

    def _count_unreadable(self, batches: list[Batch]) -> None:
        for error in (error for batch in batches for error in batch.unreadable):
            if error not in self.unreadable:
                log.warning("%s (another image stands in for it)", error)
                self.unreadable[error] = None
        if len(self.unreadable) > self.step.faults.max_unreadable:
            last = list(self.unreadable)[-1]
            raise UserError(
                f"faults.max_unreadable: {len(self.unreadable)} images cannot be read (the last: {last})",
                "replace them",
            )

    def _receive(self, progress: Progress, everything: bool = False) -> bool:
        """Add the steps whose numbers have come. Return whether a process was told to stop."""
        is_stopped = False
        for (step, rate, batches), numbers in self.readback.receive(everything):
            is_stopped |= numbers.pop("interrupted") > 0
            progress.add({"step": step, "lr": rate} | {k: v for k, v in numbers.items() if k not in RANK_NUMBERS})
            meters = set(self.step.meter_names)
            self.refusals.check(step, batches, {k: v for k, v in numbers.items() if k not in meters})
        return is_stopped

    def _evaluate(self, epoch: int, folder: RunFolder | None) -> None:
        metrics, detections = self.evaluate(self.evaluated_model)
        if folder is not None:
            save_evaluation(self.folder, metrics, detections)
            folder.record_evaluation(self.steps_done, metrics)
        log.info("epoch %d/%d  AP %.4f  AP50 %.4f", epoch + 1, self.settings.epochs, metrics["AP"], metrics["AP50"])
        if metrics["AP"] > self.best_ap or self.best_ap == -math.inf:  # NaN, no ground truth, is kept once
            self.best_ap = metrics["AP"]
            self.save("best")

    def state(self) -> dict:
        """Return all that the remaining steps depend on, as tensors and plain containers; whole on rank 0."""
        return {
            "model": self.model.state_dict(),
            "average_updates": 0 if self.step.average is None else int(self.step.average.updates),
            "optimizer": self.step.optimizer.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "criterion": self.criterion.state_dict(),
            "guard": self.step.guard.state_dict(),
            "steps_per_epoch": self.schedule.steps_per_epoch,
            "steps_done": self.steps_done,
            "epochs_done": self.epochs_done,
            "best_ap": self.best_ap,
            "splits": self.step.splits,
            "unreadable": gather(list(self.unreadable)),
            "random": gather(random_state(self.step.device)),
        }

    def save(self, name: str) -> None:
        """checkpoints/<name>.pt: `model` is what is evaluated (the average where there is one). Only `last` can be
        resumed, so only it carries the training state."""
        contents = {"version": CHECKPOINT_VERSION, **self.description, "model": self.evaluated_model.state_dict()}
        if name == "last":
            contents["training"] = self.state()
        if rank() == 0:
            keep = self.settings.keep_checkpoints if name == "last" else 1
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
            if self.step.average is not None:
                self.step.average.module.load_state_dict(checkpoint["model"])
                self.step.average.updates.fill_(state["average_updates"])
            fresh = load_criterion(self.criterion, state["criterion"], set(changes))
            load_optimizer(self.step.optimizer, state["optimizer"])
            if state["scaler"]:  # empty where the run was not in fp16
                self.step.scaler.load_state_dict(state["scaler"])
            if is_of_this_loss:  # else its mean is that of another loss
                self.step.guard.load_state_dict(state["guard"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            line = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise UserError(
                f"{origin} does not fit this config ({line})", "resume with the run's config.yaml"
            ) from error
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
        if changes and rank() == 0:
            log.warning("going on with other settings than %s: %s", origin, "; ".join(changes.values()))
        if "model.weights" in changes and rank() == 0:
            log.warning("model.weights is not loaded: the run continues with the weights of %s", origin)
        if changes_metrics(changes) and rank() == 0:
            log.warning("the best AP so far was measured with other settings: the next evaluation replaces best.pt")
        if fresh and rank() == 0:
            log.warning("%s: what the loss had measured so far does not fit; it starts anew", ", ".join(fresh))
        self.step.steps_done = state["steps_done"]
        self.epochs_done = state["epochs_done"]
        if (self.folder / "checkpoints" / "best.pt").is_file() and not changes_metrics(changes):
            self.best_ap = state["best_ap"]
        self.step.splits = state["splits"]
        if len(state["random"]) == world_size():
            restore_random_state(state["random"][rank()], self.step.device)
            self.unreadable = dict.fromkeys(state["unreadable"][rank()])
        else:
            log.warning(
                "%s was written by %d processes, %d continue: the order of the images and their pixels stay; sums are "
                "added in another order and random numbers drawn anew, so that the last digits will differ",
                origin,
                len(state["random"]),
                world_size(),
            )
