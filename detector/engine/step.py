"""The training step: the forward and backward passes, clipping and the update."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from detector.core.distributed import sum_over_ranks, world_size
from detector.core.errors import UserError
from detector.core.structures import Batch, Predictions, Targets
from detector.core.torch_errors import is_out_of_memory
from detector.engine.ema import ModelEMA
from detector.engine.guard import BufferSnapshot, FaultSettings, Guard, batch_norms
from detector.engine.interrupt import Interrupt
from detector.engine.measurements import BatchResult, measure_batch, measure_step
from detector.engine.precision import autocast
from detector.engine.replica import replicate, summed_gradients
from detector.engine.schedule import Schedule
from detector.geometry.assignment import Assigner
from detector.imbalance.initial import expected_initial_loss, judge_first_loss
from detector.imbalance.meters import meter_names
from detector.losses.criterion import Criterion
from detector.losses.terms import LossTerms
from detector.models.detector import DetectionModel

log = logging.getLogger(__name__)


class TrainingStep:
    """Takes optimizer steps. A call runs forward_backward, measure_step, clip and update.

    Static assigners run before the forward pass. Assigners that need predictions run after the forward pass. The
    normalizer of a step of several batches is then known only at the end. Losses are linear in 1 / normalizer.
    Therefore the gradients are accumulated with a normalizer of 1 and divided once, before clipping.

    A model with a one-to-one head has two losses with separate targets and normalizers. A step is then a single batch.
    The measurements are those of the one-to-one head, except the loss terms with the prefix `one_to_many_`.

    Args:
        model: the network, on its device.
        criterion: the losses, on the same device.
        assigner: the rule that gives each prior its target.
        optimizer: a fused optimizer of the parameters of the model.
        schedule: the learning rate of each step, and the settings of the training.
        faults: the treatment of refused steps and of too little memory.
        class_names: the names of the classes, for the meters.
        device: where the step computes.
        dtype: the number format in which the network computes.
        one_to_many_assigner: the rule for the one-to-many head of a model with `one_to_one`.
    """

    def __init__(
        self,
        model: DetectionModel,
        criterion: Criterion,
        assigner: Assigner,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        faults: FaultSettings,
        *,
        class_names: Sequence[str],
        device: torch.device,
        dtype: torch.dtype,
        one_to_many_assigner: Assigner | None = None,
    ):
        settings = schedule.settings
        self.model = model
        self.criterion = criterion
        self.assigner = assigner
        self.one_to_many_assigner = one_to_many_assigner
        self.optimizer = optimizer
        self.schedule = schedule
        self.settings = settings
        self.faults = faults
        self.device = device
        self.dtype = dtype
        compiled: Any = torch.compile(model, dynamic=False) if settings.compile else model
        self.replica = replicate(compiled)
        self.ema = None if settings.ema_decay is None else ModelEMA(model, settings.ema_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.guard = Guard(faults.spike_factor).to(device)
        self.interrupt = Interrupt()
        self.meter_names = meter_names(model.level_names, class_names)
        self.steps_done = 0
        self.expected_loss: float | None = None  # the expected classification loss of the initial scores
        self.num_parts = 1  # into which each batch is split to fit into the memory

    def __call__(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Take an optimizer step.

        Args:
            batches: the batches of this rank that are accumulated in the step.

        Returns:
            The measurements of the step of all ranks, as 0-dim tensors on the device. If `refused` is 1, the step did
            not change the weights, their average, the state of the optimizer or the buffers.

        Raises:
            UserError: the memory is too small for the batches.
        """
        self.criterion.begin_step(self.steps_done)
        if self.steps_done == self.criterion.warmup_steps:
            self.guard.restart()
        buffers = BufferSnapshot(*batch_norms(self.model), self.criterion)
        results, num_fg = self.forward_backward_within_memory([batch.to(self.device) for batch in batches], buffers)
        measured = measure_step(results, num_fg, self.interrupt.exit_code is not None, self.meter_names)
        if self.steps_done == 0 and self.expected_loss is not None:
            text = "step 0: the classification loss is %.4g, and the initial scores predict %.4g: %s"
            observed = float(measured["cls"])
            log.info(text, observed, self.expected_loss, judge_first_loss(observed, self.expected_loss))
        norm = self.clip()
        refused = self.update(measured["loss"], norm, buffers)
        self.steps_done += 1
        return measured | {"grad_norm": norm, "refused": refused}

    def forward_backward(self, batches: Sequence[Batch]) -> tuple[list[BatchResult], Tensor]:
        """Compute the gradients of a step, as the `grad` of the parameters.

        Returns:
            The result of each batch, and the number of foreground elements of these batches, a 0-dim tensor.
        """
        targets: list[Targets] = []
        num_fg = normaliser = None  # of the step, known after the assignment of all batches
        if not self.assigner.needs_predictions:
            targets = [self.assign(batch) for batch in batches]
            num_fg = self.criterion.count_foreground(targets)
            normaliser = self.criterion.normalise(num_fg)
            is_new = self.steps_done == 0 and self.model.head.is_untrained
            # with the IoU of the predicted boxes as target, the random boxes of a new model decide the loss
            if is_new and not self.criterion.active_classification.use_quality:
                self.expected_loss = self._expect_loss(batches, targets, normaliser)
        is_deferred = normaliser is None and len(batches) > 1
        results = []
        for i, batch in enumerate(batches):
            with summed_gradients(self.replica, is_last=i == len(batches) - 1):
                with autocast(self.device, self.dtype):
                    predictions = self.replica(batch.images)
                predictions.logits.retain_grad()
                if self.assigner.needs_predictions:
                    targets.append(self.assign(batch, predictions))
                    if not is_deferred:
                        num_fg = self.criterion.count_foreground(targets)
                        normaliser = self.criterion.normalise(num_fg)
                terms = self.criterion(predictions, targets[i], 1 if normaliser is None else normaliser, len(batches))
                if predictions.one_to_many is not None:
                    terms = self._with_one_to_many(terms, batch, predictions.one_to_many)
                self.scaler.scale(terms.total()).backward()
            has_meters = self.steps_done % self.settings.meter_every == 0
            results.append(measure_batch(self.criterion, predictions, targets[i], terms, has_meters))
        if num_fg is None:
            num_fg = self.criterion.count_foreground(targets)
            if self.criterion.divides_by_step:
                results = self._divide(results, self.criterion.normalise(num_fg).clamp(min=1))
        return results, num_fg

    def assign(self, batch: Batch, predictions: Predictions | None = None) -> Targets:
        """Return the targets of a batch.

        Args:
            batch: the images and their objects.
            predictions: the predictions on the batch, for an assigner that needs them.
        """
        return self.criterion.sample(self._assign(self.assigner, batch, predictions))

    @torch.no_grad()
    def _assign(self, rule: Assigner, batch: Batch, predictions: Predictions | None) -> Targets:
        return rule(self.model.priors(batch.image_size, batch.images.device), batch.truth, predictions)

    def _with_one_to_many(self, terms: LossTerms, batch: Batch, predictions: Predictions) -> LossTerms:
        """Return the terms of the one-to-one head together with the terms of the one-to-many head."""
        criterion, assigner = self.criterion.one_to_many, self.one_to_many_assigner
        assert criterion is not None and assigner is not None
        targets = criterion.sample(self._assign(assigner, batch, predictions))
        normaliser = criterion.normalise(criterion.count_foreground([targets]))
        weight = self.criterion.one_to_many_weight(self.steps_done / self.schedule.num_steps)
        return terms.with_one_to_many(criterion(predictions, targets, normaliser), weight)

    def _divide(self, results: list[BatchResult], normaliser: Tensor) -> list[BatchResult]:
        """Divide the gradients and the loss terms by the normalizer. They were computed with a normalizer of 1."""
        torch._foreach_div_(self._gradients(), normaliser)
        return [replace(result, terms=result.terms / normaliser) for result in results]

    def clip(self) -> Tensor:
        """Clip the gradients to the norm `clip_norm`. Return their norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm(self._gradients())
        if self.settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.settings.clip_norm, norm)
        return norm

    def update(self, loss: Tensor, norm: Tensor, buffers: BufferSnapshot) -> Tensor:
        """Update the weights and their average, unless the step is refused.

        There is no host sync.

        Args:
            loss: the loss of the step of all ranks.
            norm: the norm of its gradient.
            buffers: the buffers before the step. A refused step restores them.

        Returns:
            Whether the step is refused, a 0-dim bool on the device.
        """
        # infinite gradients are normal with the scaler of fp16: the step is then skipped, but not refused
        judged = loss if self.scaler.is_enabled() else loss.where(norm.isfinite(), math.nan)
        refused = self.guard.refuses(judged)
        is_taken = ~refused & norm.isfinite()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.steps_done) * group["lr_scale"]
        # GradScaler.step sets these attributes too: a fused optimizer then skips the step without a host sync
        fused: Any = self.optimizer
        fused.grad_scale, fused.found_inf = None, (~is_taken).float()
        self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        buffers.restore(refused)
        if self.ema is not None:
            self.ema.update(self.model, is_taken)
        return refused

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _expect_loss(self, batches: Sequence[Batch], targets: Sequence[Targets], normaliser: Tensor) -> float:
        """Return the expected classification loss of the step of all ranks if all scores are the initial score."""
        losses = [
            expected_initial_loss(
                self.criterion,
                target,
                self.model.priors(batch.image_size, batch.images.device),
                self.model.coder,
                normaliser,
                self.model.head.initial_score,
                len(batches),
            )
            for batch, target in zip(batches, targets, strict=True)
        ]
        return float(sum_over_ranks(torch.stack(losses).sum()))

    def forward_backward_within_memory(
        self, batches: Sequence[Batch], buffers: BufferSnapshot
    ) -> tuple[list[BatchResult], Tensor]:
        """Call `forward_backward`. If the memory is too small, halve the batches and repeat the call.

        Args:
            batches: the batches of this rank.
            buffers: the buffers before the step, which are restored before each repetition.

        Returns:
            The result of `forward_backward`.

        Raises:
            UserError: the memory is too small, and the batches may not or cannot be halved.
        """
        while True:
            try:
                return self.forward_backward([part for batch in batches for part in batch.split(self.num_parts)])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # not in the handler, because the exception keeps the tensors of the failed step alive
            buffers.restore()
            self.optimizer.zero_grad(set_to_none=True)
            self._halve(batches[0].images.shape, reason)

    def _halve(self, shape: torch.Size, reason: str) -> None:
        """Split batches of this shape into twice as many parts. Raise UserError if the run may not or cannot do so."""
        batch_size, *image_shape = shape
        num_images = -(-batch_size // self.num_parts)
        problem = f"step {self.steps_done}: out of memory with {num_images} images of {image_shape} ({reason})"
        needs_single_batch = self.criterion.needs_single_batch
        can_halve = world_size() == 1 and not needs_single_batch
        if self.faults.out_of_memory == "stop" or not can_halve or self.num_parts >= batch_size:
            remedy = "lower train.batch_size and raise train.accumulation by the same factor, or lower data.short_side"
            if needs_single_batch:
                remedy = "lower train.batch_size or data.short_side"
            if can_halve:
                remedy += ", or set faults.out_of_memory=halve"
            raise UserError(problem, remedy)
        self.num_parts *= 2
        log.warning("%s: each batch is now computed in %d parts", problem, self.num_parts)
