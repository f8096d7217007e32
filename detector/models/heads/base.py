"""The contract of heads, and their registry."""

from collections.abc import Sequence

from torch import Tensor, nn

from detector.core.registry import Registry
from detector.core.structures import BoxCoder


class Head(nn.Module):
    """A network that turns pyramid maps into class scores and boxes, for each of its priors.

    The constructor's positional parameters are what the program knows: `num_classes` (K), `width`, the channels of the
    pyramid maps, and `strides`, the stride of each map.

    coder: between boxes and the R numbers that the head gives for each prior.
    initial_score: the score that every prior and class starts with.
    """

    coder: BoxCoder
    initial_score: float

    def priors(self, image_size: tuple[int, int]) -> list[Tensor]:
        """Return the prior boxes (A_l, 4) xyxy fp32 of each map, for a padded image (height, width)."""
        raise NotImplementedError

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Turn pyramid maps (B, width, H, W) into logits (B, A, K) and raw boxes (B, A, R), in the order of `priors`,
        one map after another."""
        raise NotImplementedError

    @property
    def is_untrained(self) -> bool:
        """Whether all scores are still the initial score."""
        return False


HEADS: Registry[Head] = Registry("head")
