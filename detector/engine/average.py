"""The exponential moving average of a model."""

import copy
from itertools import chain

import torch
from torch import Tensor, nn


class Average:
    """`module` is the average of a model's weights and buffers over the steps: the first step's are taken whole, then
    after n updates avg <- d avg + (1 - d) now with d = min(decay, (1 + n) / (10 + n)). Counters are copied."""

    def __init__(self, model: nn.Module, decay: float):
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        ours, theirs = _tensors(self.module), _tensors(model)
        if self.updates == 0:
            torch._foreach_copy_([*ours[0], *ours[1]], [*theirs[0], *theirs[1]])
        else:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(ours[0], theirs[0], 1 - decay)
            if ours[1]:
                torch._foreach_copy_(ours[1], theirs[1])
        self.updates += 1


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Those that can be averaged, and counters."""
    every = [t.detach() for t in chain(model.parameters(), model.buffers())]
    return [t for t in every if t.is_floating_point()], [t for t in every if not t.is_floating_point()]
