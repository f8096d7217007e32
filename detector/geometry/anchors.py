"""Dense anchors over a feature pyramid."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def default_sizes(strides: Sequence[int], exact: bool) -> list[list[float]]:
    """Return RetinaNet's anchor sizes for each stride: 4 strides times (1, 2^(1/3), 2^(2/3)); unless `exact`, cut to
    whole pixels as torchvision does."""
    kind = float if exact else int
    return [[kind(4 * stride * 2 ** (i / 3)) for i in range(3)] for stride in strides]


@dataclass(frozen=True, slots=True)
class AnchorGrid:
    """strides: of each pyramid level, in pixels; sizes: sqrt(area) in pixels, a list for each level; ratios: height /
    width.

    exact: half sides and strides are these numbers, as detectron2 and mmdetection lay their anchors. Otherwise they are
    torchvision's: half sides in whole pixels, rounded after the division by two, and strides that divide the image's
    sides by the feature map's, in whole pixels too.
    """

    strides: Sequence[int]
    sizes: Sequence[Sequence[float]]
    ratios: Sequence[float]
    exact: bool

    @property
    def anchors_per_cell(self) -> int:
        return len(self.sizes[0]) * len(self.ratios)

    def base(self) -> list[Tensor]:
        """Return each level's (R * S, 4) anchors around the origin, ratio-major."""
        root = torch.tensor(self.ratios, dtype=torch.float32).sqrt()[:, None]
        levels = []
        for sizes in self.sizes:
            sizes = torch.tensor(sizes, dtype=torch.float32)
            widths, heights = (sizes / root).flatten(), (sizes * root).flatten()
            half = torch.stack((-widths, -heights, widths, heights), dim=1) / 2
            levels.append(half if self.exact else half.round())
        return levels

    def of_image(self, image_size: tuple[int, int]) -> list[Tensor]:
        """Return each level's anchors (h * w * R * S, 4) in a padded image (height, width): its base anchors at every
        cell, row by row, the cell's anchors innermost; cell (0, 0) sits at the origin."""
        levels = []
        for stride, base in zip(self.strides, self.base(), strict=True):
            y, x = (
                torch.arange(int(num_cells(side, stride)), dtype=torch.float32) * self.step(side, stride)
                for side in image_size
            )
            y, x = torch.meshgrid(y, x, indexing="ij")
            centres = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
            levels.append((centres + base).reshape(-1, 4))
        return levels

    def step(self, side: int | Tensor, stride: int) -> int | Tensor:
        """Return the pixels from a level's cell to the next along a side of so many pixels (whole numbers)."""
        return stride if self.exact else side // num_cells(side, stride)


def num_cells(side: int | Tensor, stride: int) -> int | Tensor:
    """Return the cells of a feature map along a side of so many pixels: side / stride, rounded up."""
    return -(-side // stride)
