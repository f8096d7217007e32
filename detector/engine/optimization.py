"""Optimisers, and the learning rate as a pure function of the step."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from detector.core.errors import UserError

STATES = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}  # of a parameter


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
    """The rate of step 0..num_steps-1.

    `step` multiplies by `step_factor` at each milestone (a fraction of the run); `cosine` falls to 0 at the end;
    `constant` stays. During the first `warmup_steps` it is also multiplied by a line from `warmup_factor` to 1.
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


def fit_warmup(warmup_steps: int, num_steps: int) -> int:
    """`warmup_steps`, but at most a tenth of the run's steps, so that the rate reaches its peak in a short run too."""
    return min(warmup_steps, num_steps // 10)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters; norms and biases (everything with fewer than two dimensions) do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module, *, name: Literal["sgd", "adamw"], lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD with `momentum`, or AdamW with PyTorch's betas. Both fused, so that a step can be skipped on the device."""
    groups = parameter_groups(model, weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
    _start_momenta(optimizer)
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Load the state of a run's optimizer. The settings (weight decay, momentum) stay those of `optimizer`.

    Raises UserError where the state is that of another kind of optimizer.
    """
    settings = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    known = STATES[type(optimizer)]
    foreign = {name for state in optimizer.state.values() for name in state.keys() ^ known if state}
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        foreign |= own.keys() - group.keys()
        group.update(own)
    if foreign:
        raise UserError(
            f"the optimizer's state is not that of {type(optimizer).__name__} ({', '.join(sorted(foreign))})",
            "set train.optimizer to the run's own",
        )
    if isinstance(optimizer, torch.optim.SGD):
        _start_momenta(optimizer)


def _start_momenta(optimizer: torch.optim.SGD) -> None:
    """Zeros where there is no momentum yet: the first step would leave it unset where it is skipped."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
