"""The exponential moving average (EMA) of a model."""

import copy
from itertools import chain

import torch
from torch import Tensor, nn


class ModelEMA:
    """The exponential moving average of the weights and buffers of a model, in `module`.

    The first update copies the model. Update n + 1 is average <- d average + (1 - d) model, with
    d = min(decay, (1 + n) / (10 + n)). Integer and bool tensors, such as counters, are always copied.

    Args:
        model: the model to average.
        decay: the largest d.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)

    @torch.no_grad()
    def update(self, model: nn.Module, is_taken: Tensor) -> None:
        """Update the average after a step, without a host sync.

        Args:
            model: the model after the step.
            is_taken: a 0-dim bool. If it is false, the floating-point tensors do not change.
        """
        averages, counters = _split(self.module)
        values, new_counters = _split(model)
        n = self.updates
        decay = ((1 + n) / (10 + n)).clamp(max=self.decay) * (n > 0)
        changes = torch._foreach_sub(values, averages)
        torch._foreach_mul_(changes, ((1 - decay) * is_taken).float())
        torch._foreach_add_(averages, changes)
        if counters:
            torch._foreach_copy_(counters, new_counters)
        self.updates += is_taken


def _split(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the floating-point tensors of a model, and the others."""
    tensors = [t.detach() for t in chain(model.parameters(), model.buffers())]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
