"""The class and box heads: one small convolutional tower each, shared by all pyramid levels."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

HeadNorm = Literal["none", "group"]


class Head(nn.Module):
    """`depth` 3x3 convolutions of `width` channels (with group norm where asked) and ReLU, then a 3x3 convolution to
    `num_outputs` values for each of `num_anchors` anchors a cell. Weights start normal with deviation 0.01, biases 0.

    Levels (B, width, H, W) -> (B, sum of H * W * num_anchors, num_outputs): cells row by row, anchors innermost.
    """

    def __init__(self, width: int, depth: int, num_anchors: int, num_outputs: int, norm: HeadNorm):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=norm == "none"))
            if norm == "group":
                layers.append(nn.GroupNorm(math.gcd(32, width), width))
            layers.append(nn.ReLU(inplace=True))
        self.tower = nn.Sequential(*layers)
        self.output = nn.Conv2d(width, num_anchors * num_outputs, 3, padding=1)
        self.num_outputs = num_outputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01 if norm == "none" or module is self.output else _he(width))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        # channels-last maps make the permuted view contiguous: only the concatenation copies
        rows = [self.output(self.tower(x)).permute(0, 2, 3, 1).flatten(1) for x in levels]
        return torch.cat(rows, dim=1).unflatten(1, (-1, self.num_outputs))


def _he(width: int) -> float:
    return math.sqrt(2 / (9 * width))


def initialise_prior(head: Head, prior: float) -> None:
    """Every anchor starts with sigmoid(logit) = prior for each class (Lin et al. 2017, section 3.3), so that the many
    background anchors do not drown the first steps."""
    nn.init.constant_(head.output.bias, -math.log((1 - prior) / prior))


def is_untrained(head: Head) -> bool:
    """Whether all anchors and classes still have the one bias that they start with."""
    bias = head.output.bias.detach()
    return bool((bias == bias[0]).all())
