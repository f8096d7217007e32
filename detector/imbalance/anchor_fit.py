"""How well anchors fit the boxes of a data set, and which would fit better."""

import numpy as np
import torch
from torch import Tensor

from detector.geometry.anchors import AnchorGrid, num_cells
from detector.geometry.boxes import paired_iou

ITERATIONS = 100


def best_iou(boxes: Tensor, image_sizes: Tensor, grid: AnchorGrid) -> Tensor:
    """(N,) the IoU of each box with the best of its image's anchors.

    boxes (N, 4) xyxy and image_sizes (N, 2), the padded (height, width), at the size the model sees. All anchors of one
    shape lie on a grid, and the one whose centre is nearest overlaps a box most, in x and y separately: no other needs
    looking at."""
    best = torch.zeros(len(boxes))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = image_sizes.flip(1)
    for stride, base in zip(grid.strides, grid.base(), strict=True):
        step = grid.step(sides, stride)
        nearest = (centres / step).round().clamp(min=0).minimum(torch.as_tensor(num_cells(sides, stride) - 1)) * step
        for anchor in base:
            placed = torch.cat((nearest, nearest), dim=1) + anchor
            best = torch.maximum(best, paired_iou(boxes, placed))
    return best


def suggest(boxes: Tensor, num_levels: int, num_sizes: int, num_ratios: int) -> tuple[list[list[float]], list[float]]:
    """Anchor sizes (a list for each level, in order) and ratios (height / width) from boxes (N, 4).

    k-means of log(sqrt(area)) with num_levels * num_sizes centres and of log(height / width) with num_ratios: the form
    that RetinaNet's anchors have, every size in every ratio. A proposal to be measured, not an optimum."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).double().numpy()
    sizes = np.exp(_k_means(np.log(sides.prod(axis=1)) / 2, num_levels * num_sizes))
    ratios = np.exp(_k_means(np.log(sides[:, 1] / sides[:, 0]), num_ratios))
    return (
        [[round(float(s), 1) for s in level] for level in sizes.reshape(num_levels, num_sizes)],
        [round(float(r), 2) for r in ratios],
    )


def _k_means(values: np.ndarray, count: int) -> np.ndarray:
    """(count,) centres in ascending order, by Lloyd's iterations from the quantiles: no chance in it."""
    centres = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(ITERATIONS):
        nearest = np.abs(values[:, None] - centres).argmin(axis=1)
        moved = np.array([values[nearest == k].mean() if (nearest == k).any() else centres[k] for k in range(count)])
        if np.array_equal(moved, centres):
            break
        centres = moved
    return np.sort(centres)
