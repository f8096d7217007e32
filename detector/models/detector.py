"""RetinaNet (Lin et al. 2017): ResNet, feature pyramid, dense anchors, class and box heads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.core.structures import Predictions
from detector.geometry.anchors import AnchorGrid, default_sizes
from detector.geometry.coders import DeltaCoder
from detector.models.backbones.resnet import Norm, ResNetBackbone
from detector.models.heads.anchors import Head, HeadNorm, initialise_prior
from detector.models.neck import FPN, PyramidTop

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def size_divisor(levels: tuple[int, int]) -> int:
    """What an image's sides should be multiples of: the coarsest backbone stride in use."""
    return 2 ** min(levels[1], 5)


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
        self._anchors: dict[tuple, tuple[Tensor, tuple[int, ...]]] = {}

    def forward(self, images: Tensor) -> Predictions:
        anchors, level_sizes = self.anchors(images.shape[-2:], images.device)
        if images.dtype == torch.uint8:
            images = (images.float() - self.mean) / self.std
        # a channels-last image would keep every feature map so, whatever the weights' layout
        images = images.contiguous(memory_format=self.memory_format)
        levels = self.fpn(self.backbone(images))
        return Predictions(self.class_head(levels), self.box_head(levels), anchors, level_sizes, self.coder)

    @property
    def memory_format(self) -> torch.memory_format:
        weight = self.backbone.conv1.weight
        last = weight.is_contiguous(memory_format=torch.channels_last)
        return torch.channels_last if last else torch.contiguous_format

    def anchors(self, image_size: tuple[int, int], device: torch.device) -> tuple[Tensor, tuple[int, ...]]:
        """All levels' anchors (A, 4) and the number of each level's, made once for each image size."""
        key = (tuple(image_size), device)
        if key not in self._anchors:
            if len(self._anchors) >= 32:  # a data set of many image sizes must not fill the memory
                self._anchors.clear()
            levels = self.grid.of_image(image_size)
            self._anchors[key] = (torch.cat(levels).to(device), tuple(len(level) for level in levels))
        return self._anchors[key]
