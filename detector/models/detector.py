"""The network of a dense detector: a backbone, a feature pyramid and a head."""

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
MAX_SIZES = 32  # image sizes in the cache of priors


class ModelSettings(Settings):
    """The `model` section of a config.

    Attributes:
        backbone: the network that turns images into feature maps.
        weights: null; the name of published weights of the backbone; a file with weights of the backbone; a checkpoint;
            or `importer:file`, a detector of another project.
        levels: the lowest and the highest pyramid level. Level l has a stride of 2^l pixels.
        width: the number of channels of the pyramid maps.
        pyramid_top: the input of the first level above the backbone: the highest pyramid map (p5) or the highest
            backbone map (c5).
        pyramid_relu: the next level is computed from relu(P6), instead of P6.
        head: the network that turns pyramid maps into scores and boxes.
    """

    backbone: Annotated[Part[Backbone], ChosenFrom(BACKBONES, "resnet50")] = Field("resnet50", validate_default=True)
    weights: str | None = None
    levels: Annotated[tuple[BackboneLevel, PyramidLevel], AfterValidator(in_order)] = (3, 7)
    width: PositiveInt = 256
    pyramid_top: PyramidTop = "p5"
    pyramid_relu: Switch = True
    head: Annotated[Part[Head], ChosenFrom(HEADS, "anchors")] = Field("anchors", validate_default=True)


class DetectionModel(nn.Module):
    """A network that turns images (B, 3, H, W) into `Predictions`.

    It normalizes uint8 RGB images on their device. Images of a floating dtype must already be normalized.

    If the head has a one-to-one head, the predictions are those of the one-to-one head, which reads the pyramid maps
    without gradient. In training mode, `Predictions.one_to_many` has the predictions of the head itself.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: ModelSettings, num_classes: int):
        """Build the network with its initial values. `settings.weights` is not loaded.

        Args:
            settings: the `model` section of a config.
            num_classes: K.

        Raises:
            UserError: the backbone has no maps with the strides that `settings.levels` needs.
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
        """Return the predictions for images (B, 3, H, W)."""
        height, width = images.shape[-2:]
        priors = self.priors((height, width), images.device)
        if images.dtype == torch.uint8:
            images = (images.float() - self.mean) / self.std
        # the memory format of the images would otherwise decide that of every feature map
        images = images.contiguous(memory_format=self.memory_format)
        maps = self.neck(self.backbone(images))
        if self.head.one_to_one is None:
            return self._predict(maps, priors)
        one_to_many = self._predict(maps, priors) if self.training else None
        logits, raw, *quality = self.head.one_to_one([x.detach() for x in maps])
        return Predictions(logits, raw, priors, self.coder, *quality, nms_free=True, one_to_many=one_to_many)

    def _predict(self, maps: list[Tensor], priors: Priors) -> Predictions:
        logits, raw, *quality = self.head(maps)
        return Predictions(logits, raw, priors, self.coder, *quality)

    @property
    def nms_free(self) -> bool:
        """Whether the predictions need no non-maximum suppression."""
        return self.head.one_to_one is not None

    @property
    def coder(self) -> BoxCoder:
        """The box coder of the head."""
        return self.head.coder

    @property
    def size_divisor(self) -> int:
        """The largest stride of the backbone's maps. The sides of an image should be multiples of it."""
        return self.backbone.strides[-1]

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of the weights."""
        weight = next(p for p in self.backbone.parameters() if p.ndim == 4)
        is_channels_last = weight.is_contiguous(memory_format=torch.channels_last)
        return torch.channels_last if is_channels_last else torch.contiguous_format

    @property
    def level_names(self) -> list[str]:
        """The names of the pyramid levels."""
        return level_names(self.strides)

    def priors(self, image_size: tuple[int, int], device: torch.device) -> Priors:
        """Return the priors of an image size. They are computed once for each size.

        Args:
            image_size: height and width of the padded image, in pixels.
            device: the device of the result.
        """
        key = (tuple(image_size), device)
        if key not in self._priors:
            if len(self._priors) >= MAX_SIZES:  # many image sizes must not fill the memory
                self._priors.clear()
            levels = self.head.priors(image_size)
            sizes = tuple(len(level) for level in levels)
            self._priors[key] = Priors(torch.cat(levels).to(device), sizes, self.strides)
        return self._priors[key]


def level_names(strides: Sequence[int]) -> list[str]:
    """Return the names of pyramid levels: P3 for a stride of 2^3 pixels."""
    return [f"P{stride.bit_length() - 1}" for stride in strides]


def _pyramid_strides(backbone: Sequence[int], first: int, last: int) -> tuple[int, ...]:
    """Return the stride of each pyramid level: 2^level pixels.

    Raises:
        UserError: the maps of the backbone do not have the strides of the lowest levels.
    """
    strides = tuple(2**level for level in range(first, last + 1))
    if tuple(backbone) != strides[: len(backbone)]:
        raise UserError(
            f"model.levels: [{first}, {last}] needs maps of strides {2**first}, {2 ** (first + 1)}, ..., but the "
            f"backbone has maps of strides {', '.join(map(str, backbone))}",
            "set model.levels to levels of these strides (level l has stride 2^l), or choose another model.backbone",
        )
    return strides
