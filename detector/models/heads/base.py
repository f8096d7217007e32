"""The base class of the heads, and their registry."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from detector.core.registry import Registry
from detector.core.structures import BoxCoder, BoxQuality


class Head(nn.Module):
    """A network that turns pyramid maps into class scores and boxes for each of its priors.

    The constructor has the positional parameters `num_classes` (K), `width` (the number of channels of the pyramid
    maps) and `strides` (the stride of each map). The program gives their values.

    Attributes:
        coder: the coder between boxes and the R numbers that the head predicts for each prior.
        initial_score: the score of every prior and class before training.
        quality: the target of the box quality that the head predicts, or None if it predicts no box quality.
        grid: the grid of the priors, or None if the priors have no grid. The census counts only priors of a grid.
        one_to_one: the one-to-one head, a second head with the same priors, or None. Its predictions are those of the
            model and need no non-maximum suppression. The head itself is then the one-to-many head, which trains the
            feature maps.
    """

    coder: BoxCoder
    initial_score: float
    quality: BoxQuality | None = None
    grid: Any = None
    one_to_one: "Head | None"

    def __init__(self) -> None:
        super().__init__()
        self.one_to_one = None

    def priors(self, image_size: tuple[int, int]) -> list[Tensor]:
        """Return the prior boxes (A_l, 4) xyxy fp32 of each map.

        Args:
            image_size: height and width of the padded image, in pixels.
        """
        raise NotImplementedError

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the logits (B, A, K) and the raw boxes (B, A, R), in the order of `priors`, map after map.

        A head with a `quality` also returns the logits of the box quality (B, A).

        Args:
            maps: the pyramid maps (B, width, H, W).
        """
        raise NotImplementedError

    @property
    def is_untrained(self) -> bool:
        """Whether all scores are still the initial score."""
        return False


HEADS: Registry[Head] = Registry("head")
