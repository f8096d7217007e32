"""The head of RetinaNet: dense anchors, a class branch and a box branch."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from detector.core.errors import UserError
from detector.core.validation import NonNegativeInt, PositiveFloat, PositiveFloats, Switch
from detector.geometry.anchors import AnchorGrid, default_sizes
from detector.geometry.coders import DeltaCoder
from detector.models.heads.base import HEADS, Head
from detector.models.heads.branch import Branch, BranchNorm, InitialScore

Ratios = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]


@HEADS.register("anchors")
class AnchorHead(Head):
    """RetinaNet's head (Lin et al. 2017, section 4). All pyramid maps share the two branches.

    Args:
        num_classes: K.
        width: the number of channels of the pyramid maps.
        strides: the stride of each map, in pixels.
        depth: the number of convolutions of each branch before its last convolution.
        norm: the norm after each of these convolutions.
        prior: the score of every anchor and class before training (section 3.3). With a small prior, the many
            background anchors do not dominate the first steps. null means 0.5.
        sizes: the square roots of the anchor areas in pixels, a list for each pyramid level. null means
            4 x stride x (1, 2^(1/3), 2^(2/3)).
        ratios: height / width of the anchors.
        exact: true lays the anchors without torchvision's rounding to integer pixels.

    Raises:
        UserError: `sizes` does not have a list of the same length for each pyramid level.
    """

    def __init__(
        self,
        num_classes: int,
        width: int,
        strides: Sequence[int],
        *,
        depth: NonNegativeInt = 4,
        norm: BranchNorm = "none",
        prior: InitialScore | None = 0.01,
        sizes: list[PositiveFloats] | None = None,
        ratios: Ratios = (0.5, 1.0, 2.0),
        exact: Switch = False,
    ):
        super().__init__()
        if sizes is not None and (len(sizes) != len(strides) or len(set(map(len, sizes))) > 1):
            raise UserError(
                f"model.head.sizes: {sizes} does not fit the {len(strides)} pyramid levels",
                f"give {len(strides)} lists of the same length",
            )
        self.grid = AnchorGrid(strides, sizes or default_sizes(strides, exact), ratios, exact)
        self.coder = DeltaCoder()
        num_anchors = self.grid.anchors_per_cell
        self.class_branch = Branch(width, depth, num_anchors, num_classes, norm)
        self.box_branch = Branch(width, depth, num_anchors, self.coder.num_outputs, norm)
        self.initial_score = self.class_branch.set_initial_score(prior)

    def priors(self, image_size: tuple[int, int]) -> list[Tensor]:
        """Return the anchors of each map. See `Head.priors`."""
        return self.grid.of_image(image_size)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the logits and the box offsets. See `Head.forward`."""
        return self.class_branch(maps), self.box_branch(maps)

    @property
    def is_untrained(self) -> bool:
        """Whether all anchors and classes still have the same bias, as before training."""
        return self.class_branch.has_equal_biases
