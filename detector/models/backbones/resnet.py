"""torchvision's ResNets as feature extractors."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Literal

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

Norm = Literal["frozen", "batch", "sync", "group"]


class AbsorbedNorm(FrozenBatchNorm2d):
    """A frozen batch norm whose convolution does its work: only its values are here, under torchvision's names."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class NormedConv2d(nn.Conv2d):
    """A convolution without bias and the frozen batch norm after it, as one convolution with scaled weights: two passes
    over the feature map less in each direction, and no map kept for them."""

    def __init__(self, conv: nn.Conv2d, norm: AbsorbedNorm):
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            bias=False,
            device="meta",
        )
        self.weight = conv.weight
        self.norm = (norm,)  # not a module of this one: the norm keeps its place in the state dict

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.norm[0].scale_and_shift()
        return self._conv_forward(x, self.weight * scale[:, None, None, None], shift)


def absorb_norms(net: nn.Module) -> None:
    """Every convolution that an AbsorbedNorm follows becomes a NormedConv2d."""
    for parent in net.modules():
        for (name, conv), (_, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, AbsorbedNorm):
                setattr(parent, name, NormedConv2d(conv, norm))


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen": AbsorbedNorm,
    "batch": nn.BatchNorm2d,
    "sync": nn.SyncBatchNorm,
    "group": partial(nn.GroupNorm, 32),
}


class ResNetBackbone(nn.Module):
    """A torchvision ResNet up to stage `last_stage`, with torchvision's own parameter names.

    Returns the maps C_first..C_last at strides 2^first..2^last, (B, C, H / stride, W / stride). Of its five stages
    (stem, layer1..layer4) the last `trainable_stages` train; frozen ones stay outside the autograd graph.
    stride_in_1x1: a bottleneck's stride is in its first convolution, as He et al. 2015 had it, not in its 3x3 one.
    """

    def __init__(
        self,
        name: str,
        *,
        norm: Norm,
        trainable_stages: int,
        stride_in_1x1: bool,
        first_stage: int,
        last_stage: int,
    ):
        super().__init__()
        net = getattr(torchvision.models, name)(weights=None, norm_layer=NORMS[norm])
        if stride_in_1x1:
            for block in net.modules():
                if isinstance(block, Bottleneck):
                    block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
        absorb_norms(net)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        stages = [f"layer{i}" for i in range(1, last_stage)]
        for stage in stages:
            self.add_module(stage, getattr(net, stage))
        self.stages = stages
        self.first_stage = first_stage
        out = [getattr(self, stage)[-1] for stage in stages[first_stage - 2 :]]
        self.out_channels = [(block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels for block in out]
        for frozen in [[self.conv1, self.bn1], *([getattr(self, s)] for s in stages)][: 5 - trainable_stages]:
            for module in frozen:
                module.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = []
        for i, stage in enumerate(self.stages, start=2):
            x = getattr(self, stage)(x)
            if i >= self.first_stage:
                features.append(x)
        return features

    def load(self, state: dict[str, Tensor]) -> None:
        """A torchvision classification state dict; the classifier and unused stages are left out.

        Raises RuntimeError where a name is missing, a shape differs, or batch norms would have to become group norms.
        """
        own = self.state_dict()
        if "bn1.running_mean" in state and "bn1.running_mean" not in own:
            raise RuntimeError("they were trained with batch norm; use model.norm=frozen, batch or sync")
        counters = {name for name in own if name.endswith("num_batches_tracked")}
        self.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
        missing = own.keys() - state.keys() - counters
        if missing:
            raise RuntimeError(f"no values for {', '.join(sorted(missing)[:3])}")


def frozen_batch_norm_is_random(state: dict[str, Tensor]) -> bool:
    """True where every frozen norm still has its initial mean 0 and shift 0, so that it normalises nothing. (Norms made
    of published scales and shifts alone have means of 0 too.)"""
    norms = [k.removesuffix("running_mean") for k in state if k.endswith("running_mean")]
    return bool(norms) and not any(state[k + kind].any() for k in norms for kind in ("running_mean", "bias"))
