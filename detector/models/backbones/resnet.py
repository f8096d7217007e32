"""The ResNets of torchvision as backbones."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torchvision
from pydantic import Field
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from detector.core.errors import UserError
from detector.core.validation import NonNegativeInt, Switch
from detector.models.backbones.base import BACKBONES, IMAGENET, Backbone, frozen_batch_norm_is_random
from detector.models.backbones.convolutions import SharedConv2d
from detector.models.weights.files import first_line, load_contents, state_of

Norm = Literal["frozen", "batch", "sync", "group"]


class AbsorbedNorm(FrozenBatchNorm2d):
    """A frozen batch norm that a `NormedConv2d` applies. It holds only the values, under torchvision's names."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the input. The convolution before has already applied the norm."""
        return x

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the scale and the shift of each channel."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class NormedConv2d(SharedConv2d):
    """A convolution without bias and its frozen batch norm, as a single convolution with scaled weights.

    This saves two passes over the feature map in each direction, and the memory of a feature map.

    Args:
        conv: the convolution.
        norm: the norm after it.
    """

    def __init__(self, conv: nn.Conv2d, norm: AbsorbedNorm):
        super().__init__(conv)
        self.norm = (norm,)  # in a tuple, so that it is no submodule and its names in the state dict do not change

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution and the norm of the input."""
        scale, shift = self.norm[0].scale_and_shift()
        return self._conv_forward(input, self.weight * scale[:, None, None, None], shift)


def absorb_norms(net: nn.Module) -> None:
    """Replace each convolution before an `AbsorbedNorm` with a `NormedConv2d`."""
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


class ResNet(Backbone):
    """A ResNet of torchvision (He et al. 2015), with torchvision's parameter names.

    Args:
        min_stride: the lowest stride of the maps.
        max_stride: the highest stride of the maps.
        norm: `frozen` is batch norm with the statistics of the weights. `batch` and `sync` are batch norms over one
            process and over all processes. `group` is group norm with 32 groups.
        trainable_stages: the number of stages that train, counted from the last of the five stages (stem,
            layer1..layer4). Frozen stages are not in the autograd graph.
        stride_in_1x1: a bottleneck has its stride in the first 1x1 convolution, as in He et al. 2015. False puts the
            stride in the 3x3 convolution.
    """

    architecture: str  # torchvision's name

    def __init__(
        self,
        min_stride: int,
        max_stride: int,
        *,
        norm: Norm = "frozen",
        trainable_stages: Annotated[NonNegativeInt, Field(le=5)] = 3,
        stride_in_1x1: Switch = False,
    ):
        super().__init__()
        net: Any = self.make_net(NORMS[norm])
        if stride_in_1x1:
            for block in net.modules():
                if isinstance(block, Bottleneck):
                    block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
        absorb_norms(net)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        stages = {4: net.layer1, 8: net.layer2, 16: net.layer3, 32: net.layer4}  # by stride
        self.strides = tuple(stride for stride in stages if min_stride <= stride <= max_stride)
        self.stages = [f"layer{i}" for i, stride in enumerate(stages, start=1) if stride <= max_stride]
        for name, stage in zip(self.stages, stages.values(), strict=False):
            self.add_module(name, stage)
        last_blocks = [stages[stride][-1] for stride in self.strides]
        self.out_channels = tuple(
            (block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels for block in last_blocks
        )
        for frozen in [[self.conv1, self.bn1], *([getattr(self, s)] for s in self.stages)][: 5 - trainable_stages]:
            for module in frozen:
                module.requires_grad_(False)

    def make_net(self, norm: Callable[[int], nn.Module]) -> torchvision.models.ResNet:
        """Return a new network of torchvision, of which the backbone takes the stages.

        Args:
            norm: makes a norm for a number of channels.
        """
        return getattr(torchvision.models, self.architecture)(weights=None, norm_layer=norm)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of normalized images. See `Backbone.forward`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for name in self.stages:
            x = getattr(self, name)(x)
            maps.append(x)
        return maps[-len(self.strides) :]

    def load(self, weights: str | Path) -> None:
        """Load published weights of torchvision by their name, or a file with the tensors of a classification model.

        `imagenet` is IMAGENET1K_V1. The classifier and the unused stages are not loaded.
        """
        state = self._published(weights) if isinstance(weights, str) else state_of(load_contents(weights))
        names = self.state_dict().keys()
        if "bn1.running_mean" in state and "bn1.running_mean" not in names:
            raise UserError(
                f"model.weights: {weights} has batch norms, but the backbone has none",
                "set model.backbone.norm=frozen or batch",
            )
        try:
            self.load_state_dict({k: v for k, v in state.items() if k in names}, strict=False)
        except RuntimeError as error:
            raise self._misfit(weights, first_line(error)) from error
        counters = {name for name in names if name.endswith("num_batches_tracked")}
        missing = names - state.keys() - counters
        if missing:
            raise self._misfit(weights, f"it has no values for {', '.join(sorted(missing)[:3])}")

    def check_trainable(self) -> None:
        """Check that frozen batch norms have loaded statistics. Without them they normalize nothing.

        Raises:
            UserError: they have their initial statistics.
        """
        if isinstance(self.bn1, AbsorbedNorm) and frozen_batch_norm_is_random(self.state_dict()):
            raise UserError(
                "model.backbone.norm: frozen batch norm needs pretrained weights",
                "set model.weights=imagenet, or model.backbone.norm=group or batch to train from scratch",
            )

    def _published(self, name: str) -> dict[str, Tensor]:
        published = get_model_weights(self.architecture)
        name = "IMAGENET1K_V1" if name == IMAGENET else name
        if name not in published.__members__:
            known = ", ".join(published.__members__)
            raise UserError(
                f"model.weights: '{name}' is neither a file nor the name of published weights of {self.architecture}",
                f"give a file, imagenet, or one of {known}",
            )
        try:
            return published[name].get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"model.weights: cannot download {published[name].url} ({first_line(error)})",
                f"put the file into {torch.hub.get_dir()}/checkpoints, or train without: model.weights=null",
            ) from error

    def _misfit(self, weights: str | Path, reason: str) -> UserError:
        return UserError(
            f"model.weights: {weights} does not fit the backbone {self.architecture} ({reason})",
            "give weights of this backbone, or set model.backbone to the backbone of the weights",
        )


@BACKBONES.register("resnet18")
class ResNet18(ResNet):
    """ResNet-18, with the options of `ResNet`."""

    architecture = "resnet18"


@BACKBONES.register("resnet34")
class ResNet34(ResNet):
    """ResNet-34, with the options of `ResNet`."""

    architecture = "resnet34"


@BACKBONES.register("resnet50")
class ResNet50(ResNet):
    """ResNet-50, with the options of `ResNet`."""

    architecture = "resnet50"


@BACKBONES.register("resnet101")
class ResNet101(ResNet):
    """ResNet-101, with the options of `ResNet`."""

    architecture = "resnet101"
