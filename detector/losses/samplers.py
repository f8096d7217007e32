"""Anchor samplers: rules that choose the anchors that count, for any loss.

A sampler sets the labels of the other anchors to ignored.
"""

import torch
from torch import Tensor

from detector.core.registry import Registry
from detector.core.structures import IGNORED, is_foreground
from detector.core.validation import PositiveFloat, PositiveInt, UnitFloat
from detector.losses.mining import highest, keep_hard_background


class AnchorSampler:
    """A rule that chooses the anchors that count.

    Attributes:
        needs_logits: the rule reads the logits. It is then called after the forward pass. It must not change foreground
            labels, because the normalizer is counted before. Other rules are called before the forward pass.
    """

    needs_logits = False

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, labels: Tensor, logits: Tensor | None) -> Tensor:
        """Return the labels, with -1 for the anchors that do not count.

        Args:
            labels: (B, A) int64: 0..K-1 is a class, K is background, -1 is ignored.
            logits: (B, A, K), or None where the rule does not need them.
        """
        raise NotImplementedError


ANCHOR_SAMPLERS: Registry[AnchorSampler] = Registry("anchor sampler")


@ANCHOR_SAMPLERS.register("all")
class AllAnchors(AnchorSampler):
    """Every anchor counts. Focal loss and GHM are made for this rule."""

    def __call__(self, labels: Tensor, logits: Tensor | None) -> Tensor:
        """Return the labels unchanged."""
        return labels


@ANCHOR_SAMPLERS.register("random")
class RandomAnchors(AnchorSampler):
    """Random under-sampling (Ren et al. 2015, "Faster R-CNN", section 3.1.3).

    The anchors are drawn from PyTorch's generator of the device.

    Args:
        num_classes: K, the label of the background.
        count: the number of anchors of an image. Background anchors replace missing foreground anchors.
        foreground_fraction: the largest fraction of foreground anchors. Their number is rounded down, as in
            torchvision, detectron2 and mmdetection.
    """

    def __init__(self, num_classes: int, *, count: PositiveInt = 256, foreground_fraction: UnitFloat = 0.5):
        super().__init__(num_classes)
        self.count = count
        self.foreground_fraction = foreground_fraction

    def __call__(self, labels: Tensor, logits: Tensor | None) -> Tensor:
        """Return the labels of the drawn anchors. See `AnchorSampler`."""
        keys = torch.rand(labels.shape, device=labels.device)
        max_foreground = int(self.count * self.foreground_fraction)
        foreground = highest(keys, is_foreground(labels, self.num_classes), max_foreground)
        background = highest(keys, labels == self.num_classes, self.count - foreground.sum(dim=-1))
        return labels.where(foreground | background, IGNORED)


@ANCHOR_SAMPLERS.register("hard_negatives")
class HardNegatives(AnchorSampler):
    """All foreground, and the background with the highest scores (Liu et al. 2016, "SSD", section 2.2).

    The score of an anchor is its highest class score. An image without objects counts nothing.

    Args:
        num_classes: K, the label of the background.
        ratio: the number of background anchors for each foreground anchor of an image. The product is rounded down.
    """

    needs_logits = True

    def __init__(self, num_classes: int, *, ratio: PositiveFloat = 3.0):
        super().__init__(num_classes)
        self.ratio = ratio

    def __call__(self, labels: Tensor, logits: Tensor | None) -> Tensor:
        """Return the labels of the hard anchors. See `AnchorSampler`."""
        assert logits is not None
        return keep_hard_background(labels, logits.detach().amax(dim=-1), self.num_classes, self.ratio)
