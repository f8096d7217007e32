"""The training step: forward and backward passes, clipping, the update, and what the step measures."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from detector.core.distributed import sum_over_ranks, world_size
from detector.core.errors import UserError
from detector.core.structures import Batch, Predictions, Targets
from detector.core.torch_errors import is_out_of_memory
from detector.engine.average import ModelAverage
from detector.engine.guard import BufferSnapshot, FaultSettings, Guard, batch_norms
from detector.engine.interrupt import Interrupt
from detector.engine.precision import autocast
from detector.engine.replica import replicate, summed_gradients
from detector.engine.schedule import Schedule
from detector.geometry.assignment import Assigner
from detector.imbalance.initial import expected_initial_loss
from detector.imbalance.meters import gradient_sums, measure, meter_names, ratio, read
from detector.losses.criterion import Criterion, LossTerms
from detector.models.detector import DetectionModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What the passes of a batch leave: its loss terms; gradient (2,), the sums of |d loss / d logit| over foreground
    elements and over all; logit_range (2,), the lowest and the highest logit; meters, what the batch adds to the meters
    of its step, or None."""

    terms: LossTerms
    gradient: Tensor
    logit_range: Tensor
    meters: Tensor | None


class TrainingStep:
    """Takes optimizer steps. `step(batches)` reads: forward_backward, clip, update, measure.

    Static assigners run before the forward pass. Assigners that need predictions run after it; the normalizer of a step
    of several batches is then known at its end alone. Losses are linear in 1 / normalizer, so the gradients are
    accumulated with a normalizer of 1 and divided once, before clipping.
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
    ):
        """Args:
        model: the network, on its device.
        criterion: the losses, on the same device.
        assigner: the rule that gives each prior its target.
        optimizer: a fused optimizer of the model's parameters.
        schedule: the learning rate of each step, and the settings of the training.
        faults: what happens to a step that cannot be taken.
        class_names: the names of the classes, for the meters.
        device: where the step is computed.
        dtype: the format in which the network is computed.
        """
        settings = schedule.settings
        self.model = model
        self.criterion = criterion
        self.assigner = assigner
        self.optimizer = optimizer
        self.schedule = schedule
        self.settings = settings
        self.faults = faults
        self.device = device
        self.dtype = dtype
        compiled: Any = torch.compile(model, dynamic=False) if settings.compile else model
        self.replica = replicate(compiled)
        self.average = None if settings.ema_decay is None else ModelAverage(model, settings.ema_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.guard = Guard(faults.spike_factor).to(device)
        self.interrupt = Interrupt()
        self.meter_names = meter_names(model.level_names, class_names)
        self.steps_done = 0
        self.expected_loss: float | None = None  # the classification loss that the initial scores should give
        self.splits = 1  # of each batch, since the whole did not fit into the memory

    def __call__(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Take one optimizer step on this rank's batches of one accumulation.

        Returns:
            What the step of all ranks measured, as 0-dim tensors on the device. Where `refused` is 1, the weights,
            their average, the optimizer and the buffers are as before.
        """
        # a forward pass moves these buffers: the statistics of batch norms, the counts of losses
        buffers = BufferSnapshot(*batch_norms(self.model), self.criterion)
        results, num_fg = self.forward_backward_within_memory([batch.to(self.device) for batch in batches], buffers)
        measured = self.measure(results, num_fg)
        if self.steps_done == 0 and self.expected_loss is not None:
            text = "step 0: classification loss %.5g; the initial scores should give %.5g"
            log.info(text, measured["cls"], self.expected_loss)
        norm = self.clip()
        refused = self.update(measured["loss"], norm, buffers)
        self.steps_done += 1
        return measured | {"grad_norm": norm, "refused": refused}

    def forward_backward(self, batches: Sequence[Batch]) -> tuple[list[BatchResult], Tensor]:
        """Leave the gradients of the step in the parameters.

        Returns:
            The result of each batch, and the foreground count of this rank's batches, a 0-dim tensor.
        """
        targets: list[Targets] = []
        num_fg = normaliser = None  # of the whole step, as soon as all targets are known
        if not self.assigner.needs_predictions:
            targets = [self.assign(batch) for batch in batches]
            num_fg = self.criterion.count_foreground(targets)
            normaliser = self.criterion.normalise(num_fg)
            if self.steps_done == 0 and self.model.head.is_untrained:
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
                self.scaler.scale(terms.total()).backward()
            results.append(self._result(predictions, targets[i], terms))
        if num_fg is None:
            num_fg = self.criterion.count_foreground(targets)
            if self.criterion.divides_by_step:
                results = self._divide(results, self.criterion.normalise(num_fg).clamp(min=1))
        return results, num_fg

    def assign(self, batch: Batch, predictions: Predictions | None = None) -> Targets:
        """Return the targets of a batch. `predictions` are those of an assigner that needs them."""
        priors = self.model.priors(batch.image_size, batch.images.device)
        with torch.no_grad():
            return self.criterion.sample(self.assigner(priors, batch.truth, predictions))

    def _divide(self, results: list[BatchResult], normaliser: Tensor) -> list[BatchResult]:
        """Divide the gradients and the loss terms, which were computed with a normalizer of 1."""
        torch._foreach_div_(self._gradients(), normaliser)
        return [replace(result, terms=result.terms / normaliser) for result in results]

    def clip(self) -> Tensor:
        """Scale the gradients to the norm `clip_norm` at most. Return the norm before."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm(self._gradients())
        if self.settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.settings.clip_norm, norm)
        return norm

    def update(self, loss: Tensor, norm: Tensor, buffers: BufferSnapshot) -> Tensor:
        """Move the weights, and their average, unless the step is refused.

        Args:
            loss: the loss of the step of all ranks.
            norm: the norm of its gradient.
            buffers: their values before the step, for a step that is refused.

        Returns:
            Whether the step is refused, a 0-dim bool on the device. Nothing waits for it.
        """
        # fp16's scaler meets infinite gradients as a matter of course: such a step is skipped, not refused
        judged = loss if self.scaler.is_enabled() else loss.where(norm.isfinite(), math.nan)
        refused = self.guard.refuses(judged)
        is_taken = ~refused & norm.isfinite()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.steps_done) * group["lr_scale"]
        # what GradScaler.step tells a fused optimizer, which then leaves everything alone without asking the host
        fused: Any = self.optimizer  # which reads these attributes
        fused.grad_scale, fused.found_inf = None, (~is_taken).float()
        self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        buffers.restore(refused)
        if self.average is not None:
            self.average.update(self.model, is_taken)
        return refused

    def measure(self, results: Sequence[BatchResult], num_fg: Tensor) -> dict[str, Tensor]:
        """Return the numbers of the step by name, 0-dim tensors: the loss and its terms over all ranks, the shares of
        the gradient, the range of this rank's logits, and the meters where it is their turn."""
        rows = []
        for result in results:
            fg_gradient, gradient = result.gradient.unbind()
            rows.append(
                {
                    "loss": result.terms.total(),
                    **result.terms.weighted,
                    **result.terms.parts,
                    "fg_gradient_share": fg_gradient,
                    "gradient": gradient,
                }
            )
        of_rank = {name: torch.stack([row[name].detach() for row in rows]).sum() for name in rows[0]}
        of_rank |= {"num_fg": num_fg, "interrupted": torch.full_like(num_fg, self.interrupt.exit_code is not None)}
        summed = sum_over_ranks(torch.stack(list(of_rank.values()))).unbind()
        measured = dict(zip(of_rank, summed, strict=True))
        measured["fg_gradient_share"] = ratio(measured["fg_gradient_share"], measured.pop("gradient"))
        low, high = torch.stack([result.logit_range for result in results]).unbind(dim=1)
        measured |= {"rank_loss": of_rank["loss"], "logit_min": low.amin(), "logit_max": high.amax()}
        meters = [result.meters for result in results if result.meters is not None]
        if meters:
            values = read(sum_over_ranks(torch.stack(meters).sum(dim=0)))
            measured |= dict(zip(self.meter_names, values.unbind(), strict=True))
        return measured

    def _result(self, predictions: Predictions, targets: Targets, terms: LossTerms) -> BatchResult:
        gradient = predictions.logits.grad
        assert gradient is not None
        meters = None
        if self.steps_done % self.settings.meter_every == 0:
            sizes = predictions.priors.level_sizes
            logits, quality = predictions.logits.detach(), self.criterion.quality(predictions, targets)
            elements = self.criterion.classification.elements(
                logits, targets.labels, level_sizes=sizes, quality=quality
            )
            meters = measure(logits, gradient, elements.detach(), targets.labels, sizes)
        logit_range = torch.stack(predictions.logits.detach().aminmax())
        return BatchResult(terms.detach(), gradient_sums(gradient, targets.labels), logit_range, meters)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _expect_loss(self, batches: Sequence[Batch], targets: Sequence[Targets], normaliser: Tensor) -> float:
        """Return the classification loss of the step of all ranks if every score were the initial score."""
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
        """Call `forward_backward`, on halved batches where they do not fit into the memory whole."""
        while True:
            try:
                return self.forward_backward([part for batch in batches for part in batch.split(self.splits)])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # outside of the handler, which keeps the failed step's tensors alive
            buffers.restore()
            self.optimizer.zero_grad(set_to_none=True)
            self._halve(batches[0].images.shape, reason)

    def _halve(self, shape: torch.Size, reason: str) -> None:
        """Split batches of this shape into twice as many parts. Raises UserError where the run may not."""
        size, *image_shape = shape
        num_images = -(-size // self.splits)
        what = f"out of memory at step {self.steps_done}, {num_images} images of {image_shape} at a time ({reason})"
        if self.faults.out_of_memory == "stop" or world_size() > 1 or self.splits >= size:
            remedy = "lower train.batch_size, with train.accumulation as many times higher, or data.short_side"
            raise UserError(
                what, remedy + ("" if world_size() > 1 else "; faults.out_of_memory=halve does the first by itself")
            )
        self.splits *= 2
        log.warning("%s: each batch goes in %d parts from here on", what, self.splits)
