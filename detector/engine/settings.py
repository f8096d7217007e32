"""The `train` section of a config: how long and how fast a model is trained, and what the run records."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from detector.core.registry import ChosenFrom, Part
from detector.core.validation import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Settings,
    Switch,
    UnitFloat,
)
from detector.engine.loggers import LOGGERS, Logger


class TrainSettings(Settings):
    """The `train` section of a config.

    batch_size: the images of a batch, of all processes together. backbone_lr_scale: a factor of the learning rate of
    the backbone. decay_norms_and_biases: whether weight decay acts on norms and biases too. milestones: fractions of
    the run. warmup_steps: at most a tenth of the run's steps. compile: compile the model with torch.compile, once for
    the image size of each bucket. evaluate_every: epochs; 0 evaluates at the end alone. log_every: steps. meter_every:
    steps between two readings of the meters; a reading costs a part of a step. save_every: steps between checkpoints
    inside an epoch; 0 saves at the end of an epoch alone. keep_checkpoints: last.pt and the files before it.
    loggers: the records of the values of the steps and evaluations.
    """

    epochs: PositiveInt = 12
    batch_size: PositiveInt = 16
    accumulation: PositiveInt = 1
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01
    weight_decay: NonNegativeFloat = 1e-4
    momentum: UnitFloat = 0.9
    backbone_lr_scale: PositiveFloat = 1.0
    decay_norms_and_biases: Switch = False
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: list[UnitFloat] = [0.6667, 0.8889]
    step_factor: UnitFloat = 0.1
    warmup_steps: NonNegativeInt = 500
    warmup_factor: UnitFloat = 0.001
    clip_norm: PositiveFloat | None = None
    ema_decay: UnitFloat | None = None
    compile: Switch = False
    channels_last: Switch | Literal["auto"] = "auto"
    evaluate_every: NonNegativeInt = 1
    log_every: PositiveInt = 20
    meter_every: PositiveInt = 20
    save_every: NonNegativeInt = 1000
    keep_checkpoints: PositiveInt = 2
    loggers: list[Annotated[Part[Logger], ChosenFrom(LOGGERS)]] = Field(["csv", "tensorboard"], validate_default=True)

    @field_validator("loggers")
    @classmethod
    def _each_once(cls, loggers: list[Part[Logger]]) -> list[Part[Logger]]:
        if any(part in loggers[:i] for i, part in enumerate(loggers)):
            raise ValueError("should have each logger once")
        return loggers
