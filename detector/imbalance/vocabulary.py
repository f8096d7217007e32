"""The terms that all instruments share.

Anchors are *foreground*, *background* or *ignored*. A foreground anchor of class y and every other anchor that counts
gives K elements, one for each class: the element (foreground anchor, y) has the binary target 1, all others 0. Elements
fall in five disjoint groups by their target and their gradient norm g = |p - target|, the gradient of cross entropy
(Li, Liu, Wang 2019). Background with g < 0.1 is *easy*: the score is right. An element of either target with g >= 0.9
is an *outlier*: the score contradicts the label. Background between both is *hard*.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from detector.core.json_records import JsonRecord

EASY_BELOW = 0.1
OUTLIER_FROM = 0.9
GROUPS = ("foreground", "foreground_outlier", "easy_background", "hard_background", "background_outlier")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorCounts(JsonRecord):
    """Numbers of anchors."""

    foreground: int
    ignored: int
    background: int


def by_group(histograms: Tensor) -> Tensor:
    """Add up the bins of each of GROUPS: (..., 2, bins) -> (..., 5).

    histograms: a quantity of background and of foreground elements in equal bins of the gradient norm from 0 to 1. The
    number of bins is a multiple of 10, so that the groups end where bins end.
    """
    easy, sure = (round(edge * histograms.shape[-1]) for edge in (EASY_BELOW, OUTLIER_FROM))
    background, foreground = histograms.unbind(-2)
    parts = (foreground[..., :sure], foreground[..., sure:])
    parts += (background[..., :easy], background[..., easy:sure], background[..., sure:])
    return torch.stack([part.sum(dim=-1) for part in parts], dim=-1)
