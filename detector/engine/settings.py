"""The `train` section of a config: the optimization, the device, and the records of a run."""

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

    Attributes:
        epochs: the number of epochs.
        batch_size: the number of images of a batch, of all processes together.
        accumulation: the number of batches of an optimizer step.
        seed: the random seed of the weights, the order of the images and the transforms.
        device: auto uses a GPU if PyTorch finds one, and the CPU otherwise.
        precision: the number format of the network. auto is bf16 on devices with hardware for it, and fp32 on others.
        optimizer: SGD with momentum, or AdamW.
        lr: the peak learning rate.
        weight_decay: the weight decay.
        momentum: the momentum of SGD.
        backbone_lr_scale: the factor of the learning rate of the backbone.
        decay_norms_and_biases: whether weight decay also applies to norms and biases.
        schedule: the learning rate falls at the milestones (step), along a cosine to 0 (cosine), or stays (constant).
        milestones: fractions of the run, for the schedule `step`.
        step_factor: the factor of the learning rate at each milestone.
        warmup_steps: the number of warm-up steps, at most a tenth of the run.
        warmup_factor: the factor of the learning rate at step 0.
        clip_norm: the largest norm of the gradient; longer gradients are scaled to it. null does not scale.
        ema_decay: the decay of the moving average of the weights, which is evaluated and saved. null has no average.
        compile: whether torch.compile compiles the model, once for the image size of each bucket.
        channels_last: whether feature maps have the channels last in memory. auto is false for fp32 on a CPU, except
            for backbones with depthwise convolutions.
        evaluate_every: epochs between evaluations. 0 evaluates only at the end.
        log_every: steps between progress lines.
        meter_every: steps between readings of the meters. A reading costs a part of the time of a step.
        save_every: steps between checkpoints in an epoch. 0 saves only at the end of an epoch.
        keep_checkpoints: the number of files last.pt, last.1.pt, and so on.
        loggers: the loggers that record the values of the steps and evaluations.
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
