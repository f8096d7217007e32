"""The exponential moving average of a model."""

import copy
from itertools import chain

import torch
from torch import Tensor, nn


class ModelAverage:
    """`module` is the average of a model's weights and buffers over the steps: the first step's are taken whole, then
    after n updates avg <- d avg + (1 - d) now with d = min(decay, (1 + n) / (10 + n)). Counters are copied."""

    def __init__(self, model: nn.Module, decay: float):
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)

    @torch.no_grad()
    def update(self, model: nn.Module, taken: Tensor) -> None:
        """After a step; where the 0-dim bool `taken` is false, the average stays as it is. No host sync."""
        ours, theirs = _tensors(self.module), _tensors(model)
        n = self.updates
        decay = ((1 + n) / (10 + n)).clamp(max=self.decay) * (n > 0)
        moves = torch._foreach_sub(theirs[0], ours[0])
        torch._foreach_mul_(moves, ((1 - decay) * taken).float())
        torch._foreach_add_(ours[0], moves)
        if ours[1]:
            torch._foreach_copy_(ours[1], theirs[1])
        self.updates += taken


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Those that can be averaged, and counters."""
    every = [t.detach() for t in chain(model.parameters(), model.buffers())]
    return [t for t in every if t.is_floating_point()], [t for t in every if not t.is_floating_point()]
