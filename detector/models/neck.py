"""The feature pyramid network (Lin et al. 2017, "Feature Pyramid Networks for Object Detection")."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

PyramidTop = Literal["p5", "c5"]


class FPN(nn.Module):
    """A network that turns backbone maps C_min, ... into pyramid maps P_min..P_max of `width` channels.

    Each backbone map gets a lateral 1x1 convolution. The upsampled coarser map is added, and a 3x3 convolution follows.
    The levels above the backbone are 3x3 convolutions with stride 2 of the level below.

    Args:
        in_channels: the number of channels of each backbone map.
        width: the number of channels of each pyramid map.
        num_levels: the number of pyramid maps.
        top: the input of the first level above the backbone: `p5`, as in torchvision's RetinaNet, or `c5`, as in the
            paper of RetinaNet.
        relu: the next levels are computed from relu(P6), instead of P6.
    """

    def __init__(self, in_channels: Sequence[int], width: int, num_levels: int, *, top: PyramidTop, relu: bool):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in in_channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in in_channels)
        self.top, self.relu = top, relu
        num_extra = num_levels - len(in_channels)
        widths = [in_channels[-1] if top == "c5" else width, *[width] * num_extra][:num_extra]
        self.extra = nn.ModuleList(HalvingConv(w, width) for w in widths)
        for conv in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the pyramid maps (B, width, H / stride, W / stride) of the backbone maps, from fine to coarse."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        levels = [smooth(x) for smooth, x in zip(self.smooth, merged, strict=True)]
        x = features[-1] if self.top == "c5" else levels[-1]
        for conv in self.extra:
            levels.append(conv(x))
            x = levels[-1].relu() if self.relu else levels[-1]
        return levels


class HalvingConv(nn.Conv2d):
    """A 3x3 convolution of stride 2."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of maps (B, C, H, W)."""
        if input.shape[-1] > 1:
            return super().forward(input)
        # On a CPU in bf16, PyTorch 2.15 leaves the weight gradient of the kernel columns that see only padding
        # uninitialized. Explicit padding gives the same output, and a correct gradient.
        return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias, stride=2)
