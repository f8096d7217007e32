"""Hard example mining: only the rows with the highest loss count."""

from typing import Literal

import torch
from torch import Tensor

from detector.core.structures import IGNORED, is_foreground
from detector.core.validation import NonNegativeFloat, PositiveFloat, PositiveInt, UnitFloat
from detector.kernels import focal_terms
from detector.kernels.reference import binary_targets, counted, focal_elements, widen
from detector.losses.base import CLASSIFICATION_LOSSES, ClassificationLoss, one_over


def highest(scores: Tensor, among: Tensor, count: Tensor | int) -> Tensor:
    """Which of the rows (..., R) are the `count` (...) of highest score among those in the mask `among`: bool; of equal
    scores the first."""
    scores = scores.clamp(min=torch.finfo(scores.dtype).min)  # above the -inf of the others
    order = scores.masked_fill(~among, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, places)
    return among & (rank < (count[..., None] if torch.is_tensor(count) else count))


def keep_hard_background(labels: Tensor, scores: Tensor, num_classes: int, ratio: float) -> Tensor:
    """labels (..., R) with all but `ratio` background rows of highest score for each foreground row, image by image,
    set to ignored (Liu et al. 2016, "SSD", section 2.2)."""
    background = labels == num_classes
    num_fg = is_foreground(labels, num_classes).sum(dim=-1)
    kept = highest(scores, background, (num_fg * ratio).floor())
    return labels.masked_fill(background & ~kept, IGNORED)


@CLASSIFICATION_LOSSES.register("ohem")
class OHEMLoss(ClassificationLoss):
    """Focal loss (cross entropy at the default gamma = 0) over the hard rows of each image; the last dimension of
    labels is the rows of one image.

    mode `ratio`: all foreground rows, and for each of them `ratio` background rows of highest loss (SSD, Liu et al.
    2016); an image without objects counts nothing. mode `top_k`: the `top_k` rows of highest loss, foreground or not
    (Shrivastava et al. 2016, "Training Region-based Object Detectors with Online Hard Example Mining", without NMS).
    Easy background is left out whole, so outliers weigh more: focal loss did better on COCO (Lin et al. 2017, table
    1d)."""

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

    def split(self, logits: Tensor, labels: Tensor, num_fg: Tensor | float, level_sizes=None, quality=None) -> Tensor:
        _, labels = self._mine(logits, labels)
        return focal_terms(logits, labels, alpha=self.alpha, gamma=self.gamma, scale=one_over(num_fg, logits))

    def elements(self, logits: Tensor, labels: Tensor, level_sizes=None, quality=None) -> Tensor:
        return counted(*self._mine(logits, labels))

    @torch.no_grad()
    def _mine(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of every element, and the labels with all but the hard rows ignored."""
        num_classes = logits.shape[-1]
        elements = focal_elements(widen(logits), binary_targets(labels, num_classes), self.alpha, self.gamma)
        scores = elements.sum(dim=-1)
        if self.mode == "ratio":
            return elements, keep_hard_background(labels, scores, num_classes, self.ratio)
        return elements, labels.where(highest(scores, labels >= 0, self.top_k), IGNORED)
