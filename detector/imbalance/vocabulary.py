"""The words that all instruments share.

Anchors are *foreground*, *background* or *ignored*. A foreground anchor of class y and every other anchor that counts
gives K elements, one for each class: the element (foreground anchor, y) has the binary target 1, all others 0. Elements
fall in five disjoint groups by their target and their gradient norm g = |p - target|, the gradient of cross entropy
(Li, Liu, Wang 2019): background that is right (g < 0.1) is *easy*, an element of either target that is wrong for sure
(g >= 0.9) an *outlier*, background in between *hard*.
"""

import torch
from torch import Tensor

EASY_BELOW = 0.1
OUTLIER_FROM = 0.9
GROUPS = ("foreground", "foreground_outlier", "easy_background", "hard_background", "background_outlier")


def by_group(histograms: Tensor) -> Tensor:
    """(..., 2, bins), a sum over background and over foreground elements in equal bins of the gradient norm from 0 to 1
    -> (..., 5), the sums of GROUPS. bins is a multiple of 10, so that the groups end where bins do."""
    easy, sure = (round(edge * histograms.shape[-1]) for edge in (EASY_BELOW, OUTLIER_FROM))
    background, foreground = histograms.unbind(-2)
    parts = (foreground[..., :sure], foreground[..., sure:])
    parts += (background[..., :easy], background[..., easy:sure], background[..., sure:])
    return torch.stack([part.sum(dim=-1) for part in parts], dim=-1)
