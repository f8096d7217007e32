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


def group_index(norms: Tensor, targets: Tensor) -> Tensor:
    """The place in GROUPS of each element, int64: gradient norms (...) in 0..1, binary targets (...) bool."""
    outlier = norms >= OUTLIER_FROM
    background = torch.where(outlier, 4, torch.where(norms < EASY_BELOW, 2, 3))
    return torch.where(targets, outlier.long(), background)
