"""Dense anchors over a feature pyramid."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def default_sizes(strides: Sequence[int], exact: bool) -> list[list[float]]:
    """Return RetinaNet's anchor sizes in pixels for each stride: 4 x stride x (1, 2^(1/3), 2^(2/3)).

    Args:
        strides: the stride of each pyramid level, in pixels.
        exact: false truncates the sizes to integer pixels, as torchvision does.
    """
    kind = float if exact else int
    return [[kind(4 * stride * 2 ** (i / 3)) for i in range(3)] for stride in strides]


@dataclass(frozen=True, slots=True)
class AnchorGrid:
    """The anchors of a feature pyramid, for images of any size.

    Attributes:
        strides: the stride of each pyramid level, in pixels.
        sizes: the square roots of the anchor areas in pixels, a list for each level.
        ratios: height / width.
        exact: true uses the sizes and the strides without rounding, as detectron2 and mmdetection do. False rounds as
            torchvision does. Half a side is rounded to integer pixels. A stride is the side of the image divided by the
            side of the feature map, rounded down.
    """

    strides: Sequence[int]
    sizes: Sequence[Sequence[float]]
    ratios: Sequence[float]
    exact: bool

    @property
    def anchors_per_cell(self) -> int:
        """The number of anchors of each cell."""
        return len(self.sizes[0]) * len(self.ratios)

    def base(self) -> list[Tensor]:
        """Return the anchors (R * S, 4) of each level around the origin: all sizes of a ratio, then the next ratio."""
        root = torch.tensor(self.ratios, dtype=torch.float32).sqrt()[:, None]
        levels = []
        for sizes in self.sizes:
            sizes = torch.tensor(sizes, dtype=torch.float32)
            widths, heights = (sizes / root).flatten(), (sizes * root).flatten()
            half = torch.stack((-widths, -heights, widths, heights), dim=1) / 2
            levels.append(half if self.exact else half.round())
        return levels

    def of_image(self, image_size: tuple[int, int]) -> list[Tensor]:
        """Return the anchors (h * w * R * S, 4) of each level.

        Each cell has the base anchors. The cells are in row order, and the anchors of a cell are consecutive. The cell
        (0, 0) is at the origin.

        Args:
            image_size: height and width of the padded image, in pixels.
        """
        levels = []
        for stride, base in zip(self.strides, self.base(), strict=True):
            corners = cell_corners(image_size, [self.step(side, stride) for side in image_size], stride)
            levels.append((corners[:, None] + base).reshape(-1, 4))
        return levels

    def step(self, side: int | Tensor, stride: int) -> int | Tensor:
        """Return the distance between two cells of a level, in pixels.

        Args:
            side: the side of the image, an integer number of pixels.
            stride: the stride of the level, in pixels.
        """
        return stride if self.exact else rounded_step(side, stride)


def num_cells(side: int | Tensor, stride: int) -> int | Tensor:
    """Return the number of cells along a side of a feature map: side / stride, rounded up.

    Args:
        side: the side of the image, an integer number of pixels.
        stride: the stride of the feature map, in pixels.
    """
    return -(-side // stride)


def rounded_step(side: int | Tensor, stride: int) -> int | Tensor:
    """Return the distance between two cells in torchvision: side / number of cells, rounded down to integer pixels.

    Args:
        side: the side of the image, an integer number of pixels.
        stride: the stride of the feature map, in pixels.
    """
    return side // num_cells(side, stride)


def cell_corners(image_size: tuple[int, int], steps: Sequence[int | Tensor], stride: int) -> Tensor:
    """Return the upper left corners of the cells of a feature map as (x, y, x, y), (h * w, 4), in row order.

    Args:
        image_size: height and width of the padded image, in pixels.
        steps: the height and width of a cell, in pixels.
        stride: the stride of the feature map, in pixels.
    """
    y, x = (
        torch.arange(int(num_cells(side, stride)), dtype=torch.float32) * step
        for side, step in zip(image_size, steps, strict=True)
    )
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((x, y, x, y), dim=-1).reshape(-1, 4)
