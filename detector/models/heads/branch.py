"""A branch of a head: the convolutions that all pyramid maps share."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

BranchNorm = Literal["none", "group"]


class Branch(nn.Module):
    """3x3 convolutions with ReLU, and a last 3x3 convolution to the outputs of each prior.

    The initial weights are normal with a standard deviation of 0.01, and the initial biases are 0. The convolutions
    before a group norm have no bias. The standard deviation of their weights is sqrt(2 / (9 * width)).

    Args:
        width: the number of channels of the maps and of the convolutions.
        depth: the number of convolutions before the last convolution.
        num_priors: the number of priors of each cell.
        num_outputs: the number of values of each prior.
        norm: `group` puts a group norm before each ReLU. `none` has no norm.
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
        """Return the outputs (B, A, num_outputs) of maps (B, width, H, W), map after map.

        A is the sum of H * W * num_priors. The cells of a map are in row order, and the priors of a cell are
        consecutive.
        """
        # with channels-last maps the permuted view is contiguous, so only the concatenation copies
        rows = [self.output(self.tower(x)).permute(0, 2, 3, 1).flatten(1) for x in maps]
        return torch.cat(rows, dim=1).unflatten(1, (-1, self.num_outputs))


def _he(width: int) -> float:
    return math.sqrt(2 / (9 * width))
