"""The terms that all instruments share.

An anchor is *foreground*, *background* or *ignored*. Every anchor that is not ignored has K elements, one for each
class. The element of a foreground anchor at the anchor's class has the binary target 1. All other elements have the
target 0. An element with target 1 is a foreground element, an element with target 0 is a background element.

Elements form five disjoint groups by their target and their gradient norm g = |p - target|, the gradient of cross
entropy (Li, Liu, Wang 2019). A background element with g < 0.1 is *easy*: its score is correct. An element with
g >= 0.9 is an *outlier*: its score contradicts its label. The other background elements are *hard*.
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
    """The numbers of foreground, ignored and background anchors."""

    foreground: int
    ignored: int
    background: int


def by_group(histograms: Tensor) -> Tensor:
    """Add up the bins of each of GROUPS: (..., 2, bins) -> (..., 5).

    Args:
        histograms: a quantity of background and of foreground elements in equal bins of the gradient norm from 0 to 1.
            The number of bins is a multiple of 10, so the limits of the groups are edges of bins.
    """
    easy, outlier = (round(edge * histograms.shape[-1]) for edge in (EASY_BELOW, OUTLIER_FROM))
    background, foreground = histograms.unbind(-2)
    parts = (foreground[..., :outlier], foreground[..., outlier:])
    parts += (background[..., :easy], background[..., easy:outlier], background[..., outlier:])
    return torch.stack([part.sum(dim=-1) for part in parts], dim=-1)
