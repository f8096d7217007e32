"""The fit of anchors to the boxes of a data set, and a suggestion of anchors that fit better."""

import numpy as np
import torch
from torch import Tensor

from detector.geometry.anchors import AnchorGrid, num_cells
from detector.geometry.boxes import paired_iou

ITERATIONS = 100


def best_iou(boxes: Tensor, image_sizes: Tensor, grid: AnchorGrid) -> Tensor:
    """Return the highest IoU of each box with the anchors of its image, (N,).

    All anchors of a shape lie on a grid. Among them, the anchor with the center nearest to a box's center, in x and y
    separately, has the highest IoU. So only this anchor is compared.

    Args:
        boxes: (N, 4) xyxy in pixels of the model's input.
        image_sizes: (N, 2) height and width of the padded image of each box, in pixels.
        grid: the anchors.
    """
    best = torch.zeros(len(boxes))
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = image_sizes.flip(1)
    for stride, base in zip(grid.strides, grid.base(), strict=True):
        step = grid.step(sides, stride)
        nearest = (centers / step).round().clamp(min=0).minimum(torch.as_tensor(num_cells(sides, stride) - 1)) * step
        for anchor in base:
            shifted = torch.cat((nearest, nearest), dim=1) + anchor
            best = torch.maximum(best, paired_iou(boxes, shifted))
    return best


def suggest(boxes: Tensor, num_levels: int, num_sizes: int, num_ratios: int) -> tuple[list[list[float]], list[float]]:
    """Suggest anchor sizes and ratios that fit boxes.

    The sizes are k-means centers of log(sqrt(area)), and the ratios are k-means centers of log(height / width). As in
    RetinaNet, every size has every ratio. The suggestion is not an optimum, so measure it before use.

    Args:
        boxes: (N, 4) xyxy in pixels of the model's input.
        num_levels: the number of pyramid levels.
        num_sizes: the number of sizes of each level.
        num_ratios: the number of ratios.

    Returns:
        The sizes in pixels, a list for each level, and the ratios (height / width), all in ascending order.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).double().numpy()
    sizes = np.exp(_k_means(np.log(sides.prod(axis=1)) / 2, num_levels * num_sizes))
    ratios = np.exp(_k_means(np.log(sides[:, 1] / sides[:, 0]), num_ratios))
    return (
        [[round(float(s), 1) for s in level] for level in sizes.reshape(num_levels, num_sizes)],
        [round(float(r), 2) for r in ratios],
    )


def _k_means(values: np.ndarray, count: int) -> np.ndarray:
    """Return (count,) centers in ascending order. Lloyd's iterations start from the quantiles, not at random."""
    centers = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(ITERATIONS):
        nearest = np.abs(values[:, None] - centers).argmin(axis=1)
        moved = np.array([values[nearest == k].mean() if (nearest == k).any() else centers[k] for k in range(count)])
        if np.array_equal(moved, centers):
            break
        centers = moved
    return np.sort(centers)
