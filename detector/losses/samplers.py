"""Which anchors count: rules that set the labels of the others to ignored, so that they serve every loss."""

import torch
from torch import Tensor

from detector.core.registry import Registry
from detector.core.structures import IGNORED, is_foreground
from detector.core.validation import PositiveFloat, PositiveInt, UnitFloat
from detector.losses.mining import highest, keep_hard_background


class AnchorSampler:
    """`sampler(labels, logits)`: labels (B, A) int64 and logits (B, A, K) -> labels, some of them set to -1. A sampler
    without `needs_logits` is asked before the forward pass, with None for logits; one with it leaves the foreground
    alone, since what the loss is divided by has been counted by then."""

    needs_logits = False

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, labels: Tensor, logits: Tensor | None) -> Tensor:
        raise NotImplementedError


ANCHOR_SAMPLERS: Registry[AnchorSampler] = Registry("anchor sampler")


@ANCHOR_SAMPLERS.register("all")
class AllAnchors(AnchorSampler):
    """Every anchor counts: what focal loss and GHM are made for."""

    def __call__(self, labels: Tensor, logits: Tensor | None) -> Tensor:
        return labels


@ANCHOR_SAMPLERS.register("random")
class RandomAnchors(AnchorSampler):
    """Random under-sampling: `count` anchors an image, at most `foreground_fraction` of them foreground and the rest
    background (Ren et al. 2015, "Faster R-CNN", section 3.1.3). The number of foreground anchors is rounded down, as
    torchvision, detectron2 and mmdetection round it. Drawn from PyTorch's generator of the device."""

    def __init__(self, num_classes: int, *, count: PositiveInt = 256, foreground_fraction: UnitFloat = 0.5):
        super().__init__(num_classes)
        self.count = count
        self.foreground_fraction = foreground_fraction

    def __call__(self, labels: Tensor, logits: Tensor | None) -> Tensor:
        keys = torch.rand(labels.shape, device=labels.device)
        background = labels == self.num_classes
        foreground = highest(keys, is_foreground(labels, self.num_classes), int(self.count * self.foreground_fraction))
        background = highest(keys, background, self.count - foreground.sum(dim=-1))
        return labels.where(foreground | background, IGNORED)


@ANCHOR_SAMPLERS.register("hard_negatives")
class HardNegatives(AnchorSampler):
    """All foreground, and for each foreground anchor of an image `ratio` background anchors, those with the highest
    score of any class (Liu et al. 2016, "SSD"), rounded down. An image without objects counts nothing."""

    needs_logits = True

    def __init__(self, num_classes: int, *, ratio: PositiveFloat = 3.0):
        super().__init__(num_classes)
        self.ratio = ratio

    def __call__(self, labels: Tensor, logits: Tensor | None) -> Tensor:
        assert logits is not None
        return keep_hard_background(labels, logits.detach().amax(dim=-1), self.num_classes, self.ratio)
