"""Convolutions that replace convolutions of other libraries, with the same parameters."""

import torch
from torch import Tensor, nn


class SharedConv2d(nn.Conv2d):
    """A convolution with the settings and the parameters of another convolution.

    Args:
        conv: the other convolution.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            pair(conv.kernel_size),
            pair(conv.stride),
            conv.padding if isinstance(conv.padding, str) else pair(conv.padding),
            pair(conv.dilation),
            conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias


class Fp32Conv2d(SharedConv2d):
    """A convolution that computes in fp32 on a CPU, also where autocast would use another data type.

    Args:
        conv: a convolution of PyTorch, or timm's convolution with the padding of TensorFlow.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__(conv)
        self.compute = type(conv).forward

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of the input, in the data type of the input."""
        if input.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return self.compute(self, input)
        with torch.autocast("cpu", enabled=False):
            return self.compute(self, input.float()).to(input.dtype)


def is_depthwise(module: nn.Module) -> bool:
    """Return whether a module is a depthwise convolution."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def compute_slow_gradients_in_fp32(net: nn.Module) -> None:
    """Replace the depthwise convolutions of a timm model whose gradients are slow on a CPU in bf16.

    These have a kernel above 3x3, or a stride. With AVX512-BF16, PyTorch 2.15 takes 2 to 8 times as long for them as in
    fp32, and the step of EfficientNet-Lite0 takes 1.4 times as long. Other depthwise convolutions are faster in bf16.
    """
    from timm.layers.conv2d_same import Conv2dSame

    for parent in list(net.modules()):
        for name, conv in list(parent.named_children()):
            if not isinstance(conv, nn.Conv2d) or type(conv) not in (nn.Conv2d, Conv2dSame) or not is_depthwise(conv):
                continue
            if max(conv.kernel_size) > 3 or max(conv.stride) > 1:
                setattr(parent, name, Fp32Conv2d(conv))


def pair(values: tuple[int, ...]) -> tuple[int, int]:
    """Return the two values, for height and width."""
    height, width = values
    return height, width
