"""The training loop: epochs of steps, evaluations, checkpoints, and resuming."""

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
RANK_NUMBERS = ("rank_loss", "logit_min", "logit_max")  # of the batches of this process, not of the step of all ranks


class Trainer:
    """Trains a model and writes a run folder. `state()` contains all state that outlives a step.

    Args:
        step: takes the optimizer steps. It has the model, the losses and the settings.
        loader: gives the training batches of each epoch.
        evaluate: returns the metrics of a model on the validation set, including `AP`, and its detections.
        description: the entries of a checkpoint that describe its model: config, class_names, category_ids, and `data`,
            the fingerprint of each split.
        folder: the run folder.
    """

    def __init__(
        self,
        step: TrainingStep,
        loader: Loader,
        *,
        evaluate: Callable[[nn.Module], tuple[Metrics, list[dict]]],
        description: dict,
        folder: Path,
    ):
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
        self.epochs_done = 0  # including their evaluations
        self.best_ap = -math.inf
        self.unreadable: dict[str, None] = {}  # the errors of images that other images replace, without repetitions

    @property
    def steps_done(self) -> int:
        """The number of optimizer steps since the start of the run, including refused steps."""
        return self.step.steps_done

    @property
    def evaluated_model(self) -> nn.Module:
        """The moving average of the model, or the model if the run has no average."""
        return self.model if self.step.ema is None else self.step.ema.module

    def train(self) -> None:
        """Train from `steps_done` to the end of the schedule.

        Raises:
            Interrupted: a signal ended the run, after a checkpoint was written.
            UserError: a step was refused, the memory is too small, or too many images are unreadable.
        """
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
                    with self.step.interrupt.immediately():  # a resumed run repeats the evaluation
                        self._evaluate(epoch, folder)
                self.epochs_done += 1
                self.save("last")

    def _epoch(self, epoch: int, progress: Progress) -> None:
        """Take the remaining steps of an epoch."""
        self.model.train()
        progress.restart()
        is_stopped = False
        try:
            for batches in self.batches(epoch, self.steps_done - epoch * self.schedule.steps_per_epoch):
                tag = self.steps_done, self.schedule.rate(self.steps_done), batches
                self.readback.send(tag, self.step(batches))
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
        finally:  # a refused step raises an error; the steps before it are recorded
            progress.show(epoch, self.steps_done)
        if is_stopped:
            self.save("last")
            log.info("interrupted after step %d; continue with --resume auto", self.steps_done)
            raise Interrupted(self.step.interrupt.exit_code or 143)

    def batches(self, epoch: int, offset: int = 0) -> Iterator[list[Batch]]:
        """Yield the batches of each optimizer step of an epoch, as a list of `accumulation` batches.

        Args:
            epoch: the epoch, counted from 0.
            offset: the first step in the epoch.

        Raises:
            UserError: an image cannot be read, and `faults.max_unreadable` does not permit it.
        """
        accumulation = self.settings.accumulation
        batches = self.loader.epoch(epoch, first_batch=offset * accumulation)
        for _ in range(offset, self.schedule.steps_per_epoch):
            of_step = list(islice(batches, accumulation))
            self._count_unreadable(of_step)
            yield of_step

    def _count_unreadable(self, batches: list[Batch]) -> None:
        for error in (error for batch in batches for error in batch.unreadable):
            if error not in self.unreadable:
                log.warning("%s: another image replaces this image", error)
                self.unreadable[error] = None
        if len(self.unreadable) > self.step.faults.max_unreadable:
            last = list(self.unreadable)[-1]
            raise UserError(
                f"faults.max_unreadable: {len(self.unreadable)} images cannot be read (the last: {last})",
                "replace these images, or raise faults.max_unreadable",
            )

    def _receive(self, progress: Progress, everything: bool = False) -> bool:
        """Add the steps whose numbers have arrived. Return whether a process received a signal."""
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
        # without objects the AP is NaN, and the first model is saved
        if metrics["AP"] > self.best_ap or self.best_ap == -math.inf:
            self.best_ap = metrics["AP"]
            self.save("best")

    def state(self) -> dict:
        """Return the training state, as tensors and plain containers. Only rank 0 has the states of all ranks."""
        return {
            "model": self.model.state_dict(),
            "average_updates": 0 if self.step.ema is None else int(self.step.ema.updates),
            "optimizer": self.step.optimizer.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "criterion": self.criterion.state_dict(),
            "guard": self.step.guard.state_dict(),
            "steps_per_epoch": self.schedule.steps_per_epoch,
            "steps_done": self.steps_done,
            "epochs_done": self.epochs_done,
            "best_ap": self.best_ap,
            "splits": self.step.num_parts,
            "unreadable": gather(list(self.unreadable)),
            "random": gather(random_state(self.step.device)),
        }

    def save(self, name: str) -> None:
        """Write checkpoints/<name>.pt. Its `model` is `evaluated_model`.

        Only the checkpoint `last` contains the training state, so only this checkpoint can be resumed.
        """
        contents = {"version": CHECKPOINT_VERSION, **self.description, "model": self.evaluated_model.state_dict()}
        if name == "last":
            contents["training"] = self.state()
        if rank() == 0:
            keep = self.settings.keep_checkpoints if name == "last" else 1
            save_checkpoint(self.folder / "checkpoints" / f"{name}.pt", contents, keep)

    def resume(self, checkpoint: dict, origin: Path) -> None:
        """Load the training state of a checkpoint, and warn of changed settings.

        Args:
            checkpoint: the contents of the checkpoint.
            origin: the path of the checkpoint, for messages.

        Raises:
            UserError: the checkpoint has no training state, or the state does not fit this run.
        """
        state = checkpoint.get("training")
        if state is None:
            raise UserError(f"{origin}: the checkpoint has no training state", "resume from checkpoints/last.pt")
        changes = compare_runs(checkpoint, self.description, self.schedule.steps_per_epoch, origin)
        is_same_loss = not any(key.partition(".")[0] == "loss" for key in changes)
        try:
            self.model.load_state_dict(state["model"])
            if self.step.ema is not None:
                self.step.ema.module.load_state_dict(checkpoint["model"])
                self.step.ema.updates.fill_(state["average_updates"])
            fresh = load_criterion(self.criterion, state["criterion"], set(changes))
            load_optimizer(self.step.optimizer, state["optimizer"])
            if state["scaler"]:  # empty if the run was not in fp16
                self.step.scaler.load_state_dict(state["scaler"])
            if is_same_loss:  # else the saved mean belongs to another loss
                self.step.guard.load_state_dict(state["guard"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            line = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise UserError(
                f"{origin}: the training state does not fit this config ({line})", "resume with the run's config.yaml"
            ) from error
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
        epochs = changes.pop("train.epochs", None)
        if epochs is not None and rank() == 0:
            log.warning("%s: from now on, the learning rate follows the schedule of the new number of epochs", epochs)
        if changes and rank() == 0:
            log.warning("settings that differ from %s: %s", origin, "; ".join(changes.values()))
        if "model.weights" in changes and rank() == 0:
            log.warning("model.weights is ignored: the weights come from %s", origin)
        if changes_metrics(changes) and rank() == 0:
            log.warning("the best AP was measured with other settings: the next evaluation replaces best.pt")
        if fresh and rank() == 0:
            log.warning("%s: the saved state of the loss does not fit: a new state starts", ", ".join(fresh))
        self.step.steps_done = state["steps_done"]
        self.epochs_done = state["epochs_done"]
        if (self.folder / "checkpoints" / "best.pt").is_file() and not changes_metrics(changes):
            self.best_ap = state["best_ap"]
        self.step.num_parts = 1 if self.criterion.needs_single_batch else state["splits"]
        if len(state["random"]) == world_size():
            restore_random_state(state["random"][rank()], self.step.device)
            self.unreadable = dict.fromkeys(state["unreadable"][rank()])
        else:
            log.warning(
                "%s was written by %d processes, but %d processes resume: the images and their order do not "
                "change, but rounding errors and random numbers of the training step differ",
                origin,
                len(state["random"]),
                world_size(),
            )
