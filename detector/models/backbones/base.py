"""The base class of the backbones, and their registry."""

from pathlib import Path

from torch import Tensor, nn

from detector.core.registry import Registry

PixelValues = tuple[float, float, float]  # of red, green, blue
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
IMAGENET = "imagenet"  # the name of the ImageNet weights of any backbone


class Backbone(nn.Module):
    """A network that turns images into feature maps.

    The constructor has the positional parameters `min_stride` and `max_stride`. The pyramid can use the maps with
    strides from `min_stride` to `max_stride`. A backbone returns its maps in this range.

    Attributes:
        strides: the distance between two cells of each map in pixels, from fine to coarse.
        out_channels: the number of channels of each map.
        pixel_mean: the mean of the RGB values 0..255 of the images that the weights need.
        pixel_std: the standard deviation of these values.
        is_depthwise: whether the backbone has depthwise convolutions. They need another memory format to be fast.
    """

    strides: tuple[int, ...]
    out_channels: tuple[int, ...]
    pixel_mean: PixelValues = IMAGENET_MEAN
    pixel_std: PixelValues = IMAGENET_STD
    is_depthwise: bool = False

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return a map (B, C, H / stride, W / stride) of normalized images (B, 3, H, W) for each stride."""
        raise NotImplementedError

    def load(self, weights: str | Path) -> None:
        """Load weights.

        Args:
            weights: the name of published weights (a string), or a file of weights (a path). `imagenet` is the name of
                the ImageNet weights of any backbone.

        Raises:
            UserError: the weights do not exist, or they do not fit the backbone.
        """
        raise NotImplementedError

    def check_trainable(self) -> None:
        """Check that the backbone can be trained with its current weights.

        Raises:
            UserError: the backbone cannot be trained. By default, every backbone can.
        """


BACKBONES: Registry[Backbone] = Registry("backbone")


def frozen_batch_norm_is_random(state: dict[str, Tensor]) -> bool:
    """Return whether each frozen norm has its initial mean 0 and its initial shift 0, and normalizes nothing.

    Means of 0 are not enough: files with scales and shifts alone also give them.
    """
    norms = [k.removesuffix("running_mean") for k in state if k.endswith("running_mean")]
    return bool(norms) and not any(state[k + kind].any() for k in norms for kind in ("running_mean", "bias"))
