"""Optimizers: their parameter groups, and their state in a checkpoint."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import nn

from detector.core.errors import UserError
from detector.engine.settings import TrainSettings

# the names of the state of a parameter
STATES = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}


class HasBackbone(Protocol):
    """A model with a backbone."""

    @property
    def backbone(self) -> nn.Module:
        """The part of the model that can have a different learning rate."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield the parameters, as `nn.Module.parameters` does."""


def parameter_groups(model: HasBackbone, settings: TrainSettings) -> list[dict]:
    """Return the trainable parameters in groups, in the format of torch.optim.

    Each group has its weight decay and `lr_scale`, the factor of its learning rate. Norms and biases are the parameters
    with fewer than two dimensions.

    Args:
        model: the model.
        settings: the weight decay, and the factor of the backbone.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    is_scaled = settings.backbone_lr_scale != 1
    of_backbone = {id(p) for p in model.backbone.parameters()} if is_scaled else set()
    flat_decay = settings.weight_decay if settings.decay_norms_and_biases else 0.0
    groups = []
    for lr_scale, is_backbone in ((1.0, False), (settings.backbone_lr_scale, True)) if is_scaled else ((1.0, False),):
        parameters = [p for p in trainable if (id(p) in of_backbone) == is_backbone]
        for decay, is_flat in ((settings.weight_decay, False), (flat_decay, True)):
            chosen = [p for p in parameters if (p.ndim < 2) == is_flat]
            groups.append({"params": chosen, "weight_decay": decay, "lr_scale": lr_scale})
    return groups


def make_optimizer(model: HasBackbone, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return SGD with momentum, or AdamW with the default betas of PyTorch.

    Both are fused, so that a step can be skipped on the device.

    Args:
        model: the model.
        settings: the optimizer and its hyperparameters.
    """
    groups = parameter_groups(model, settings)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True)
    _start_momenta(optimizer)
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Load the state of an optimizer. The settings of `optimizer`, such as weight decay and momentum, do not change.

    Args:
        optimizer: receives the state.
        saved: the state dict of an optimizer of a checkpoint.

    Raises:
        UserError: the state belongs to an optimizer of another type.
    """
    settings = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    (known,) = (names for kind, names in STATES.items() if isinstance(optimizer, kind))
    foreign = {name for state in optimizer.state.values() for name in state.keys() ^ known if state}
    for group, current in zip(optimizer.param_groups, settings, strict=True):
        foreign |= current.keys() - group.keys()
        group.update(current)
    if foreign:
        raise UserError(
            f"train.optimizer: the saved state does not fit {type(optimizer).__name__} ({', '.join(sorted(foreign))})",
            "set train.optimizer to the value in the run's config.yaml",
        )
    if isinstance(optimizer, torch.optim.SGD):
        _start_momenta(optimizer)


def _start_momenta(optimizer: torch.optim.SGD) -> None:
    """Set missing momenta to zero. A first step that is skipped would create them with undefined values."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
