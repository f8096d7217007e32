"""The schedule of a run: how many steps it has, when it evaluates, and the learning rate of each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from detector.engine.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Schedule:
    """The schedule of a run with these settings, whose epochs have `steps_per_epoch` optimizer steps each, of
    `images_per_step` images of all processes together."""

    settings: TrainSettings
    steps_per_epoch: int
    images_per_step: int

    @property
    def num_steps(self) -> int:
        return self.settings.epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        """At most a tenth of the run's steps, so that the rate reaches its peak in a short run too."""
        return min(self.settings.warmup_steps, self.num_steps // 10)

    def evaluates_after(self, epoch: int) -> bool:
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
        step: 0..num_steps-1.
        num_steps: the steps of the run.
        peak: the rate without any factor.
        schedule: `step` multiplies by `step_factor` at each milestone; `cosine` falls to 0 at the end.
        milestones: fractions of the run.
        step_factor: see `schedule`.
        warmup_steps: during the first steps, the rate is also multiplied by a line from `warmup_factor` to 1.
        warmup_factor: the factor of step 0.
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
