"""Dense anchors over a feature pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor


def default_sizes(levels: tuple[int, int]) -> tuple[tuple[int, int, int], ...]:
    """RetinaNet's anchor sizes for levels min..max: 4 strides times (1, 2^(1/3), 2^(2/3)), cut to whole pixels."""
    bases = [4 * 2**level for level in range(levels[0], levels[1] + 1)]
    return tuple((b, int(b * 2 ** (1 / 3)), int(b * 2 ** (2 / 3))) for b in bases)


def base_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """(R * S, 4) anchors around the origin, ratio-major; ratio = height / width, area = size². Half sides are rounded
    to whole pixels after the division by two, torchvision's convention, so that its weights see their own anchors."""
    sizes = torch.tensor(sizes, dtype=torch.float32)
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()
    widths = (sizes[None, :] / root[:, None]).flatten()
    heights = (sizes[None, :] * root[:, None]).flatten()
    return (torch.stack((-widths, -heights, widths, heights), dim=1) / 2).round()


def grid_anchors(
    image_size: tuple[int, int], feature_sizes: Sequence[tuple[int, int]], base: Sequence[Tensor]
) -> list[Tensor]:
    """Each level's anchors (h * w * N, 4): its base anchors at every cell, row by row, the cell's anchors innermost.

    The stride is the padded image's size divided by the feature map's (whole pixels), cell (0, 0) sits at the origin.
    """
    levels = []
    for (height, width), anchors in zip(feature_sizes, base, strict=True):
        y = torch.arange(height, dtype=torch.float32) * (image_size[0] // height)
        x = torch.arange(width, dtype=torch.float32) * (image_size[1] // width)
        y, x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
        levels.append((centres + anchors).reshape(-1, 4))
    return levels


def feature_sizes(image_size: tuple[int, int], levels: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) in cells of the feature maps of levels min..max: image_size / 2^level, rounded up."""
    return [tuple(-(-side // 2**level) for side in image_size) for level in range(levels[0], levels[1] + 1)]


def pyramid_anchors(image_size: tuple[int, int], levels: tuple[int, int], base: Sequence[Tensor]) -> list[Tensor]:
    """`grid_anchors` of levels min..max."""
    return grid_anchors(image_size, feature_sizes(image_size, levels), base)
