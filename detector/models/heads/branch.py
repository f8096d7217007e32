"""A branch of a head: the convolutions that all pyramid maps share."""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detector.core.validation import UnitFloat

BranchNorm = Literal["none", "group"]
InitialScore = Annotated[UnitFloat, Field(gt=0, lt=1)]


class Branch(nn.Module):
    """3x3 convolutions with ReLU, and a last 3x3 convolution to the outputs of each prior.

    The initial weights are normal with a standard deviation of 0.01, and the initial biases are 0. The standard
    deviation of the weights before a group norm is sqrt(2 / (9 * width)).

    Args:
        width: the number of channels of the maps and of the convolutions.
        depth: the number of convolutions before the last convolution.
        num_priors: the number of priors of each cell.
        num_outputs: the number of values of each prior.
        norm: `group` puts a group norm before each ReLU. `none` has no norm.
        conv_bias: whether the convolutions before a group norm have a bias.
    """

    def __init__(
        self, width: int, depth: int, num_priors: int, num_outputs: int, norm: BranchNorm, conv_bias: bool = False
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=conv_bias or norm == "none"))
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

    @property
    def has_equal_biases(self) -> bool:
        """Whether all outputs have the same bias, as before training."""
        bias = self.bias.detach()
        return bool((bias == bias[0]).all())

    def set_initial_score(self, prior: float | None) -> float:
        """Set the bias to the logit of a score, and return the score.

        Args:
            prior: the score. None means 0.5, and the bias does not change.
        """
        if prior is None:
            return 0.5
        nn.init.constant_(self.bias, -math.log((1 - prior) / prior))
        return prior

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the outputs (B, A, num_outputs) of maps (B, width, H, W), map after map.

        A is the sum of H * W * num_priors. The cells of a map are in row order, and the priors of a cell are
        consecutive.
        """
        return self.outputs(self.tower(x) for x in maps)

    def outputs(self, features: Iterable[Tensor]) -> Tensor:
        """Return the outputs of `forward` of the results of the tower for each map."""
        # with channels-last maps the permuted view is contiguous, so only the concatenation copies
        rows = [self.output(x).permute(0, 2, 3, 1).flatten(1) for x in features]
        return torch.cat(rows, dim=1).unflatten(1, (-1, self.num_outputs))


def _he(width: int) -> float:
    return math.sqrt(2 / (9 * width))
