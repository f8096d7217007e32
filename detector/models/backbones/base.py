"""The contract of backbones, and their registry."""

from pathlib import Path

from torch import Tensor, nn

from detector.core.registry import Registry

PixelValues = tuple[float, float, float]  # of red, green, blue
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class Backbone(nn.Module):
    """A network that turns images into feature maps.

    The constructor's positional parameters `min_stride` and `max_stride` say which maps the pyramid can use: those with
    strides from `min_stride` to `max_stride`. A backbone returns the maps that it has in this range.

    strides: pixels from one cell of each map to the next, from fine to coarse.
    out_channels: the channels of each map.
    pixel_mean, pixel_std: of the RGB values 0..255 of the images that the weights belong to.
    """

    strides: tuple[int, ...]
    out_channels: tuple[int, ...]
    pixel_mean: PixelValues = IMAGENET_MEAN
    pixel_std: PixelValues = IMAGENET_STD

    def forward(self, images: Tensor) -> list[Tensor]:
        """Turn normalized images (B, 3, H, W) into maps (B, C, H / stride, W / stride), one for each stride."""
        raise NotImplementedError

    def load(self, weights: str | Path) -> None:
        """Load published weights by their name (a string), or a file of weights (a path).

        Raises:
            UserError: there are no such weights, or they do not fit.
        """
        raise NotImplementedError

    def check_trainable(self) -> None:
        """Raise UserError where the backbone cannot be trained with the weights that it has. Most always can."""


BACKBONES: Registry[Backbone] = Registry("backbone")
