"""RetinaNet (Lin et al. 2017): ResNet, feature pyramid, dense anchors, class and box heads."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from torch import Tensor, nn

from detector.core.structures import Predictions, Priors
from detector.core.validation import NonNegativeInt, PositiveFloats, PositiveInt, Settings, Switch, UnitFloat, in_order
from detector.geometry.anchors import AnchorGrid, default_sizes
from detector.geometry.coders import DeltaCoder
from detector.models.backbones.resnet import Norm, ResNetBackbone
from detector.models.heads.anchors import Head, HeadNorm, initialise_prior, is_untrained
from detector.models.neck import FPN, PyramidTop

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def size_divisor(levels: tuple[int, int]) -> int:
    """What an image's sides should be multiples of: the coarsest backbone stride in use."""
    return 2 ** min(levels[1], 5)


BackboneLevel = Annotated[int, Field(strict=True, ge=3, le=5)]
PyramidLevel = Annotated[PositiveInt, Field(ge=3, le=7)]


class ModelSettings(Settings):
    """stride_in_1x1: a bottleneck's stride is in its first convolution, not in its 3x3 one; levels: lowest and highest
    pyramid level, level l having stride 2^l pixels; width: channels of pyramid and heads; pyramid_top: what P6 is made
    of; pyramid_relu: P7 is made of relu(P6); prior: the score every anchor starts with, null for none; anchor_sizes:
    pixels, a list for each level, null for 4 x stride x (1, 2^(1/3), 2^(2/3)); exact_anchors: without torchvision's
    rounding to whole pixels."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    norm: Literal["frozen", "batch", "sync", "group"] = "frozen"
    weights: str | None = None
    trainable_stages: Annotated[NonNegativeInt, Field(le=5)] = 3
    stride_in_1x1: Switch = False
    levels: Annotated[tuple[BackboneLevel, PyramidLevel], AfterValidator(in_order)] = (3, 7)
    width: PositiveInt = 256
    pyramid_top: Literal["p5", "c5"] = "p5"
    pyramid_relu: Switch = True
    head_depth: NonNegativeInt = 4
    head_norm: Literal["none", "group"] = "none"
    prior: Annotated[UnitFloat, Field(gt=0, lt=1)] | None = 0.01
    anchor_sizes: list[PositiveFloats] | None = None
    anchor_ratios: PositiveFloats = [0.5, 1.0, 2.0]
    exact_anchors: Switch = False

    @field_validator("anchor_sizes")
    @classmethod
    def _a_list_for_each_level(cls, sizes: list[list[float]] | None, info: ValidationInfo) -> list[list[float]] | None:
        if sizes is not None and "levels" in info.data:  # absent where levels are wrong themselves
            lowest, highest = info.data["levels"]
            count = highest - lowest + 1
            if len(sizes) != count or len({len(level) for level in sizes}) > 1:
                raise ValueError(f"should be {count} lists of one length, one for each of levels {lowest} to {highest}")
        return sizes


class RetinaNet(nn.Module):
    """Images (B, 3, H, W) -> `Predictions`. uint8 RGB images are normalised here, on their device; floating ones are
    taken as normalised already."""

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str,
        norm: Norm,
        trainable_stages: int,
        stride_in_1x1: bool,
        levels: tuple[int, int],
        width: int,
        pyramid_top: PyramidTop,
        pyramid_relu: bool,
        head_depth: int,
        head_norm: HeadNorm,
        prior: float | None,
        anchor_sizes: Sequence[Sequence[float]] | None,
        anchor_ratios: Sequence[float],
        exact_anchors: bool,
    ):
        super().__init__()
        first, last = levels
        self.num_classes = num_classes
        self.levels = (first, last)
        self.backbone = ResNetBackbone(
            backbone,
            norm=norm,
            trainable_stages=trainable_stages,
            stride_in_1x1=stride_in_1x1,
            first_stage=first,
            last_stage=min(last, 5),
        )
        self.fpn = FPN(self.backbone.out_channels, width, last - first + 1, top=pyramid_top, relu=pyramid_relu)
        sizes = default_sizes(levels, exact_anchors) if anchor_sizes is None else anchor_sizes
        self.grid = AnchorGrid(levels, sizes, anchor_ratios, exact_anchors)
        num_anchors = {len(base) for base in self.grid.base()}
        if len(num_anchors) > 1:
            raise ValueError("the heads are shared: each pyramid level needs the same number of anchor sizes")
        (num_anchors,) = num_anchors
        self.class_head = Head(width, head_depth, num_anchors, num_classes, head_norm)
        self.coder = DeltaCoder()
        self.box_head = Head(width, head_depth, num_anchors, self.coder.num_outputs, head_norm)
        self.initial_score = 0.5 if prior is None else prior
        if prior is not None:
            initialise_prior(self.class_head, prior)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.structure = {  # what a file of weights must have in common with this model
            "backbone": backbone,
            "width": width,
            "head_depth": head_depth,
            "head_norm": head_norm,
            "stride_in_1x1": stride_in_1x1,
            "pyramid_top": pyramid_top,
            "pyramid_relu": pyramid_relu,
            "exact_anchors": exact_anchors,
        }
        self._priors: dict[tuple, Priors] = {}

    def forward(self, images: Tensor) -> Predictions:
        priors = self.priors(images.shape[-2:], images.device)
        if images.dtype == torch.uint8:
            images = (images.float() - self.mean) / self.std
        # a channels-last image would keep every feature map so, whatever the weights' layout
        images = images.contiguous(memory_format=self.memory_format)
        levels = self.fpn(self.backbone(images))
        return Predictions(self.class_head(levels), self.box_head(levels), priors, self.coder)

    @property
    def memory_format(self) -> torch.memory_format:
        weight = self.backbone.conv1.weight
        last = weight.is_contiguous(memory_format=torch.channels_last)
        return torch.channels_last if last else torch.contiguous_format

    @property
    def level_names(self) -> list[str]:
        return [f"P{level}" for level in range(self.levels[0], self.levels[1] + 1)]

    @property
    def is_untrained(self) -> bool:
        """Whether all scores are still the initial score."""
        return is_untrained(self.class_head)

    def priors(self, image_size: tuple[int, int], device: torch.device) -> Priors:
        """Return the priors of an image size (height, width), made once for each size."""
        key = (tuple(image_size), device)
        if key not in self._priors:
            if len(self._priors) >= 32:  # a data set of many image sizes must not fill the memory
                self._priors.clear()
            levels = self.grid.of_image(image_size)
            self._priors[key] = Priors(torch.cat(levels).to(device), tuple(len(level) for level in levels))
        return self._priors[key]
