"""The network of a dense detector: a backbone, a feature pyramid, a head."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from detector.core.errors import UserError
from detector.core.registry import ChosenFrom, Part
from detector.core.structures import BoxCoder, Predictions, Priors
from detector.core.validation import PositiveInt, Settings, Switch, in_order
from detector.models.backbones import BACKBONES, Backbone
from detector.models.heads import HEADS, Head
from detector.models.neck import FPN, PyramidTop

BackboneLevel = Annotated[int, Field(strict=True, ge=2, le=5)]
PyramidLevel = Annotated[PositiveInt, Field(ge=2, le=7)]
MAX_SIZES = 32  # image sizes whose priors are kept


class ModelSettings(Settings):
    """The `model` section of a config.

    backbone: turns images into feature maps. weights: null; the name of the backbone's published weights; a file of
    them; a checkpoint; or `importer:file`, a detector of another project. levels: the lowest and the highest pyramid
    level; level l has a stride of 2^l pixels. width: the channels of the pyramid maps. pyramid_top: what the first
    level above the backbone's is made of, the highest pyramid map (p5) or the highest backbone map (c5). pyramid_relu:
    the next level is made of relu(P6). head: turns pyramid maps into scores and boxes.
    """

    backbone: Annotated[Part[Backbone], ChosenFrom(BACKBONES, "resnet50")] = Field("resnet50", validate_default=True)
    weights: str | None = None
    levels: Annotated[tuple[BackboneLevel, PyramidLevel], AfterValidator(in_order)] = (3, 7)
    width: PositiveInt = 256
    pyramid_top: PyramidTop = "p5"
    pyramid_relu: Switch = True
    head: Annotated[Part[Head], ChosenFrom(HEADS, "anchors")] = Field("anchors", validate_default=True)


class DetectionModel(nn.Module):
    """Images (B, 3, H, W) -> `Predictions`. uint8 RGB images are normalized here, on their device; floating ones are
    taken as normalized already."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: ModelSettings, num_classes: int):
        """Build the network as it is initialized. `settings.weights` is not loaded.

        Raises:
            UserError: the backbone has no maps of the strides that `settings.levels` asks for.
        """
        super().__init__()
        first, last = settings.levels
        self.settings = settings
        self.num_classes = num_classes
        self.backbone = settings.backbone.build({"min_stride": 2**first, "max_stride": 2**last})
        self.strides = _pyramid_strides(self.backbone.strides, first, last)
        self.neck = FPN(
            self.backbone.out_channels,
            settings.width,
            len(self.strides),
            top=settings.pyramid_top,
            relu=settings.pyramid_relu,
        )
        known = {"num_classes": num_classes, "width": settings.width, "strides": self.strides}
        self.head = settings.head.build(known)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.backbone, f"pixel_{name}")).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self._priors: dict[tuple, Priors] = {}

    def forward(self, images: Tensor) -> Predictions:
        height, width = images.shape[-2:]
        priors = self.priors((height, width), images.device)
        if images.dtype == torch.uint8:
            images = (images.float() - self.mean) / self.std
        # a channels-last image would keep every feature map so, whatever the weights' layout
        images = images.contiguous(memory_format=self.memory_format)
        logits, raw = self.head(self.neck(self.backbone(images)))
        return Predictions(logits, raw, priors, self.head.coder)

    @property
    def coder(self) -> BoxCoder:
        return self.head.coder

    @property
    def size_divisor(self) -> int:
        """The number that an image's sides should be multiples of: the coarsest stride of the backbone's maps."""
        return self.backbone.strides[-1]

    @property
    def memory_format(self) -> torch.memory_format:
        weight = next(p for p in self.backbone.parameters() if p.ndim == 4)
        last = weight.is_contiguous(memory_format=torch.channels_last)
        return torch.channels_last if last else torch.contiguous_format

    @property
    def level_names(self) -> list[str]:
        return level_names(self.strides)

    def priors(self, image_size: tuple[int, int], device: torch.device) -> Priors:
        """Return the priors of an image size (height, width), made once for each size."""
        key = (tuple(image_size), device)
        if key not in self._priors:
            if len(self._priors) >= MAX_SIZES:  # a data set of many image sizes must not fill the memory
                self._priors.clear()
            levels = self.head.priors(image_size)
            self._priors[key] = Priors(torch.cat(levels).to(device), tuple(len(level) for level in levels))
        return self._priors[key]


def level_names(strides: Sequence[int]) -> list[str]:
    """Return the names of pyramid levels: P3 for a stride of 2^3 pixels."""
    return [f"P{stride.bit_length() - 1}" for stride in strides]


def _pyramid_strides(backbone: Sequence[int], first: int, last: int) -> tuple[int, ...]:
    """Return the stride of each pyramid level. Levels above the backbone's maps have twice the stride of the level
    below. Raises UserError where the backbone has no map for a level."""
    strides = tuple(2**level for level in range(first, last + 1))
    if tuple(backbone) != strides[: len(backbone)]:
        found = ", ".join(map(str, backbone))
        raise UserError(
            f"model.levels: [{first}, {last}] needs maps of the strides {2**first}, {2 ** (first + 1)}, ... of the "
            f"backbone, which has {found}",
            "set model.levels to these strides (the level of stride 2^l is l), or another backbone",
        )
    return strides
