"""Dense anchors over a feature pyramid."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def default_sizes(levels: tuple[int, int], exact: bool) -> tuple[tuple[float, float, float], ...]:
    """RetinaNet's anchor sizes for levels min..max: 4 strides times (1, 2^(1/3), 2^(2/3)); unless `exact`, cut to whole
    pixels as torchvision does."""
    kind = float if exact else int
    bases = [4 * 2**level for level in range(levels[0], levels[1] + 1)]
    return tuple((kind(b), kind(b * 2 ** (1 / 3)), kind(b * 2 ** (2 / 3))) for b in bases)


@dataclass(frozen=True, slots=True)
class AnchorGrid:
    """levels: lowest and highest; sizes: sqrt(area) in pixels, a list for each level; ratios: height / width.

    exact: half sides and strides as these numbers and 2^level say, which is how detectron2 and mmdetection lay their
    anchors; otherwise torchvision's way: half sides in whole pixels, rounded after the division by two, and strides
    that divide the image's sides by the feature map's, in whole pixels too.
    """

    levels: tuple[int, int]
    sizes: Sequence[Sequence[float]]
    ratios: Sequence[float]
    exact: bool

    def base(self) -> list[Tensor]:
        """Each level's (R * S, 4) anchors around the origin, ratio-major."""
        root = torch.tensor(self.ratios, dtype=torch.float32).sqrt()[:, None]
        levels = []
        for sizes in self.sizes:
            sizes = torch.tensor(sizes, dtype=torch.float32)
            widths, heights = (sizes / root).flatten(), (sizes * root).flatten()
            half = torch.stack((-widths, -heights, widths, heights), dim=1) / 2
            levels.append(half if self.exact else half.round())
        return levels

    def of_image(self, image_size: tuple[int, int]) -> list[Tensor]:
        """Each level's anchors (h * w * R * S, 4) in a padded image (height, width): its base anchors at every cell,
        row by row, the cell's anchors innermost; cell (0, 0) sits at the origin."""
        levels = []
        for level, base in zip(range(self.levels[0], self.levels[1] + 1), self.base(), strict=True):
            y, x = (
                torch.arange(num_cells(side, level), dtype=torch.float32) * self.stride(side, level)
                for side in image_size
            )
            y, x = torch.meshgrid(y, x, indexing="ij")
            centres = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
            levels.append((centres + base).reshape(-1, 4))
        return levels

    def stride(self, side: int | Tensor, level: int) -> int | Tensor:
        """Pixels from one cell of a level to the next along a side of so many pixels (whole numbers)."""
        return 2**level if self.exact else side // num_cells(side, level)


def num_cells(side: int | Tensor, level: int) -> int | Tensor:
    """The cells of a level's feature map along a side of so many pixels: side / 2^level, rounded up."""
    return -(-side // 2**level)
