"""Hard example mining: only the rows with the highest loss count."""

from typing import Literal

import torch
from torch import Tensor

from detector.core.structures import IGNORED, is_foreground
from detector.core.validation import NonNegativeFloat, PositiveFloat, PositiveInt, UnitFloat
from detector.kernels import focal_terms
from detector.kernels.reference import binary_targets, counted, focal_elements, widen
from detector.losses.base import CLASSIFICATION_LOSSES, ClassificationLoss, one_over


def highest(scores: Tensor, is_candidate: Tensor, count: Tensor | int) -> Tensor:
    """Return a mask (..., R) of the `count` candidate rows with the highest scores. Of equal scores, the first wins.

    Args:
        scores: (..., R), of a floating dtype.
        is_candidate: (..., R) bool, the rows to choose from.
        count: the number of rows to choose, a number or a tensor (...).
    """
    scores = scores.clamp(min=torch.finfo(scores.dtype).min)  # above the -inf of the other rows
    order = scores.masked_fill(~is_candidate, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    positions = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, positions)
    return is_candidate & (rank < (count[..., None] if torch.is_tensor(count) else count))


def keep_hard_background(labels: Tensor, scores: Tensor, num_classes: int, ratio: float) -> Tensor:
    """Return the labels with only the hard background of each image (Liu et al. 2016, "SSD", section 2.2).

    For each foreground row, the `ratio` background rows with the highest scores remain. The product is rounded down.
    The other background rows become ignored.

    Args:
        labels: (..., R) int64, the rows of one image in the last dimension.
        scores: (..., R), the score of each row.
        num_classes: K, the label of the background.
        ratio: the number of background rows for each foreground row.
    """
    is_background = labels == num_classes
    num_fg = is_foreground(labels, num_classes).sum(dim=-1)
    is_hard = highest(scores, is_background, (num_fg * ratio).floor())
    return labels.masked_fill(is_background & ~is_hard, IGNORED)


@CLASSIFICATION_LOSSES.register("ohem")
class OHEMLoss(ClassificationLoss):
    """Online hard example mining: focal loss over the hard rows of each image.

    Formula of an element: -alpha_t (1 - p_t)^gamma log(p_t) in the chosen rows, else 0. p_t is p for target 1 and 1 - p
    for target 0. Sources: Liu et al. 2016, "SSD", section 2.2, for the mode `ratio`. Shrivastava et al. 2016, "Training
    Region-based Object Detectors with Online Hard Example Mining", without its NMS, for the mode `top_k`.

    Shapes: logits (..., R, K) and labels (..., R) for the R rows of an image, as in `ClassificationLoss.forward`.

    When to use: as the baseline of the methods that select examples. Easy background does not count, so outliers have a
    larger weight. Focal loss was better on COCO (Lin et al. 2017, table 1d).

    Args:
        mode: `ratio` takes all foreground rows, and for each of them the `ratio` background rows with the highest loss.
            An image without objects counts nothing. `top_k` takes the `top_k` rows with the highest loss, foreground
            or background.
        ratio: the number of background rows for each foreground row.
        top_k: the number of rows of an image.
        alpha: the weight of target 1. Target 0 gets 1 - alpha. With null, both weights are 1.
        gamma: the exponent. 0 gives cross entropy.
    """

    mines = True
    row_additive = False

    def __init__(
        self,
        *,
        mode: Literal["ratio", "top_k"] = "ratio",
        ratio: PositiveFloat = 3.0,
        top_k: PositiveInt = 256,
        alpha: UnitFloat | None = None,
        gamma: NonNegativeFloat = 0.0,
    ):
        super().__init__()
        self.mode = mode
        self.ratio = ratio
        self.top_k = top_k
        self.alpha = alpha
        self.gamma = gamma

    def split(
        self,
        logits: Tensor,
        labels: Tensor,
        num_fg: Tensor | float,
        level_sizes: tuple[int, ...] | None = None,
        quality: Tensor | None = None,
    ) -> Tensor:
        """Return the foreground and the background loss. See `ClassificationLoss.split`."""
        _, labels = self._mine(logits, labels)
        return focal_terms(logits, labels, alpha=self.alpha, gamma=self.gamma, scale=one_over(num_fg, logits))

    def elements(
        self, logits: Tensor, labels: Tensor, level_sizes: tuple[int, ...] | None = None, quality: Tensor | None = None
    ) -> Tensor:
        """Return the loss of each element. See `ClassificationLoss.elements`."""
        return counted(*self._mine(logits, labels))

    @torch.no_grad()
    def _mine(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each element, and the labels in which the rows that are not hard are ignored."""
        num_classes = logits.shape[-1]
        elements = focal_elements(widen(logits), binary_targets(labels, num_classes), self.alpha, self.gamma)
        scores = elements.sum(dim=-1)
        if self.mode == "ratio":
            return elements, keep_hard_background(labels, scores, num_classes, self.ratio)
        return elements, labels.where(highest(scores, labels >= 0, self.top_k), IGNORED)
