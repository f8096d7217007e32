"""A branch of a head: the convolutions that all pyramid maps share."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

BranchNorm = Literal["none", "group"]


class Branch(nn.Module):
    """`depth` 3x3 convolutions of `width` channels (with group norm where asked) and ReLU, then a 3x3 convolution to
    `num_outputs` values for each of `num_priors` priors a cell. Weights start normal with deviation 0.01, biases 0.

    Maps (B, width, H, W) -> (B, sum of H * W * num_priors, num_outputs): cells row by row, priors innermost.
    """

    def __init__(self, width: int, depth: int, num_priors: int, num_outputs: int, norm: BranchNorm):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=norm == "none"))
            if norm == "group":
                layers.append(nn.GroupNorm(math.gcd(32, width), width))
            layers.append(nn.ReLU(inplace=True))
        self.tower = nn.Sequential(*layers)
        self.output = nn.Conv2d(width, num_priors * num_outputs, 3, padding=1)
        self.num_outputs = num_outputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01 if norm == "none" or module is self.output else _he(width))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def bias(self) -> Tensor:
        """The bias of each output."""
        assert self.output.bias is not None
        return self.output.bias

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        # channels-last maps make the permuted view contiguous: only the concatenation copies
        rows = [self.output(self.tower(x)).permute(0, 2, 3, 1).flatten(1) for x in maps]
        return torch.cat(rows, dim=1).unflatten(1, (-1, self.num_outputs))


def _he(width: int) -> float:
    return math.sqrt(2 / (9 * width))
