"""The head of FCOS and its successors: a point for each cell, and the distances to the four sides of its box."""

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.core.structures import BoxCoder, BoxQuality
from detector.core.validation import NonNegativeInt, PositiveInt, Switch
from detector.geometry.coders import DistanceCoder, DistributionCoder
from detector.geometry.points import PointGrid
from detector.models.heads.base import HEADS, Head
from detector.models.heads.branch import Branch, BranchNorm, InitialScore

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "exp": torch.exp, "softplus": F.softplus}


@HEADS.register("points")
class PointHead(Head):
    """The head of FCOS (Tian et al. 2019, section 3), with the distributions of GFL (Li et al. 2020, section 3.2).

    Each cell has a point. The head predicts the class scores of the point, and the distances from the point to the
    four sides of the box, in strides. All pyramid maps share the convolutions.

    When to use: to train without anchor sizes. Choose an assigner for points. `max_iou` compares the squares of the
    points with the objects, so it does not fit.

    Args:
        num_classes: K.
        width: the number of channels of the pyramid maps.
        strides: the stride of each map, in pixels.
        depth: the number of convolutions of each tower.
        norm: the norm after each of these convolutions.
        prior: the score of every point and class before training. null means 0.5.
        towers: `separate` has a tower for the scores and a tower for the boxes. `shared` has a tower for both.
        conv_bias: the convolutions before a group norm have a bias, as in torchvision.
        scales: multiply the distances of each map by a learned factor. With `reg_max`, multiply the logits of the
            distributions.
        reg_max: predict a distribution over 0, 1, ..., reg_max for each distance. null predicts the distance.
        activation: the function that makes the distances positive. It has no effect with `reg_max`.
        quality: predict the center-ness or the IoU of each box from the box tower. The score of a detection is then the
            square root of class score times quality. null predicts no quality.
        at_corners: put the points at the upper left corners of the cells, as torchvision does.
        one_to_one: add a one-to-one head for detection without non-maximum suppression (Wang et al. 2024, "YOLOv10",
            consistent dual assignments). It has the same layers and initial values, and reads the pyramid maps without
            gradient. Its targets give each object at most one point. The head itself is the one-to-many head: it has
            the usual targets, trains the feature maps, and is not used after the training. The assigner has to be
            `task_aligned`.
    """

    def __init__(
        self,
        num_classes: int,
        width: int,
        strides: Sequence[int],
        *,
        depth: NonNegativeInt = 4,
        norm: BranchNorm = "group",
        prior: InitialScore | None = 0.01,
        towers: Literal["separate", "shared"] = "separate",
        conv_bias: Switch = False,
        scales: Switch = True,
        reg_max: PositiveInt | None = None,
        activation: Literal["relu", "exp", "softplus"] = "relu",
        quality: BoxQuality | None = "centerness",
        at_corners: Switch = False,
        one_to_one: Switch = False,
    ):
        super().__init__()
        self.grid = PointGrid(strides, at_corners)
        self.coder: BoxCoder = DistanceCoder() if reg_max is None else DistributionCoder(reg_max)
        self.has_shared_tower = towers == "shared"
        class_depth = 0 if self.has_shared_tower else depth
        self.class_branch = Branch(width, class_depth, 1, num_classes, norm, conv_bias)
        self.box_branch = Branch(width, depth, 1, self.coder.num_outputs, norm, conv_bias)
        self.quality = quality
        self.quality_branch = None if quality is None else Branch(width, 0, 1, 1, norm)
        self.scales = nn.Parameter(torch.ones(len(strides))) if scales else None
        self.activate = ACTIVATIONS[activation] if reg_max is None else None
        self.initial_score = self.class_branch.set_initial_score(prior)
        if one_to_one:
            self.one_to_one = copy.deepcopy(self)

    def priors(self, image_size: tuple[int, int]) -> list[Tensor]:
        """Return the points of each map as squares. See `Head.priors`."""
        return self.grid.of_image(image_size)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the logits, the distances or their distributions, and the quality. See `Head.forward`."""
        box_features = [self.box_branch.tower(x) for x in maps]
        logits = self.class_branch(box_features if self.has_shared_tower else maps)
        raw = self.box_branch.outputs(box_features)
        if self.scales is not None:
            sizes = [x.shape[-2] * x.shape[-1] for x in maps]
            factors = [scale.expand(size) for scale, size in zip(self.scales, sizes, strict=True)]
            raw = raw * torch.cat(factors)[:, None]
        if self.activate is not None:
            raw = self.activate(raw.float())
        if self.quality_branch is None:
            return logits, raw
        return logits, raw, self.quality_branch(box_features)[..., 0]

    @property
    def is_untrained(self) -> bool:
        """Whether all classes still have the same bias, as before training."""
        return self.class_branch.has_equal_biases
