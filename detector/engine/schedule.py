"""The schedule of a run: its number of steps, its evaluations, and the learning rate of each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from detector.engine.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Schedule:
    """The schedule of a run.

    Attributes:
        settings: the settings of the training.
        steps_per_epoch: the number of optimizer steps of an epoch.
        images_per_step: the number of images of a step, of all processes together.
    """

    settings: TrainSettings
    steps_per_epoch: int
    images_per_step: int

    @property
    def num_steps(self) -> int:
        """The number of optimizer steps of the run."""
        return self.settings.epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        """The number of warm-up steps: at most a tenth of the run, so that a short run reaches the peak rate."""
        return min(self.settings.warmup_steps, self.num_steps // 10)

    def evaluates_after(self, epoch: int) -> bool:
        """Return whether the run evaluates the model after this epoch, counted from 0."""
        is_last = epoch == self.settings.epochs - 1
        return is_last or (self.settings.evaluate_every > 0 and (epoch + 1) % self.settings.evaluate_every == 0)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return learning_rate(
            step,
            num_steps=self.num_steps,
            peak=self.settings.lr,
            schedule=self.settings.schedule,
            milestones=self.settings.milestones,
            step_factor=self.settings.step_factor,
            warmup_steps=self.warmup_steps,
            warmup_factor=self.settings.warmup_factor,
        )


def learning_rate(
    step: int,
    *,
    num_steps: int,
    peak: float,
    schedule: Literal["step", "cosine", "constant"],
    milestones: Sequence[float],
    step_factor: float,
    warmup_steps: int,
    warmup_factor: float,
) -> float:
    """Return the learning rate of a step.

    Args:
        step: 0..num_steps - 1.
        num_steps: the number of steps of the run.
        peak: the learning rate before any factor.
        schedule: `step` multiplies the rate by `step_factor` at each milestone. `cosine` falls from the peak to 0 at
            the end. `constant` keeps the peak.
        milestones: fractions of the run, 0..1.
        step_factor: see `schedule`.
        warmup_steps: in these first steps, the rate is also multiplied by a factor that rises linearly to 1.
        warmup_factor: the factor at step 0.
    """
    progress = step / num_steps
    if schedule == "step":
        rate = peak * step_factor ** sum(progress >= milestone for milestone in milestones)
    elif schedule == "cosine":
        rate = peak * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        rate = peak
    if step < warmup_steps:
        rate *= warmup_factor + (1 - warmup_factor) * step / warmup_steps
    return rate
