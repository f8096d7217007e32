"""The points of a feature pyramid: a prior for each cell."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.geometry.anchors import cell_corners, rounded_step


@dataclass(frozen=True, slots=True)
class PointGrid:
    """The points of a feature pyramid, for images of any size. A point is a square whose side is the stride.

    Attributes:
        strides: the stride of each pyramid level, in pixels.
        at_corners: false puts the points at the centers of the cells (FCOS, section 3.1). True puts the points at the
            upper left corners of the cells, as torchvision does. The distance between two points is then the side of
            the image divided by the side of the feature map, rounded down.
    """

    strides: Sequence[int]
    at_corners: bool = False

    def of_image(self, image_size: tuple[int, int]) -> list[Tensor]:
        """Return the points (h * w, 4) xyxy of each level, in row order.

        Args:
            image_size: height and width of the padded image, in pixels.
        """
        levels = []
        for stride in self.strides:
            steps = [rounded_step(side, stride) if self.at_corners else stride for side in image_size]
            square = torch.tensor([-1, -1, 1, 1]) * (stride / 2)
            offset = 0 if self.at_corners else stride / 2
            levels.append(cell_corners(image_size, steps, stride) + offset + square)
        return levels
