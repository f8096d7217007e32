"""Box coders: they convert between boxes and the numbers that a head predicts for each prior."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)  # a decoded side is at most 62.5 times the side of its prior, so exp() stays finite


@dataclass(frozen=True, slots=True)
class DeltaCoder:
    """A coder with the offsets of R-CNN (Girshick et al. 2014, appendix C).

    The offsets are ((x - xa) / wa, (y - ya) / ha, log(w / wa), log(h / ha)). (x, y) is the center of the box, and w and
    h are its sides. The prior has xa, ya, wa and ha.
    """

    num_outputs: int = 4

    def encode(self, boxes: Tensor, priors: Tensor) -> Tensor:
        """Return the offsets (..., 4) of boxes.

        Sides are clamped to at least 0.001 pixels, so no offset is infinite.

        Args:
            boxes: (..., 4) xyxy in pixels.
            priors: (..., 4) xyxy in pixels.
        """
        prior_sides = priors[..., 2:] - priors[..., :2]
        prior_centers = priors[..., :2] + 0.5 * prior_sides
        sides = boxes[..., 2:] - boxes[..., :2]
        centers = boxes[..., :2] + 0.5 * sides
        log_sides = (sides.clamp(min=1e-3) / prior_sides).log()
        return torch.cat(((centers - prior_centers) / prior_sides, log_sides), dim=-1)

    def decode(self, raw: Tensor, priors: Tensor) -> Tensor:
        """Return the boxes (..., 4) xyxy in pixels of offsets: the inverse of `encode`.

        The logarithms of the sides are clamped to at most log(1000 / 16).

        Args:
            raw: (..., 4), the offsets.
            priors: (..., 4) xyxy in pixels.
        """
        prior_sides = priors[..., 2:] - priors[..., :2]
        centers = raw[..., :2] * prior_sides + (priors[..., :2] + 0.5 * prior_sides)
        half_sides = 0.5 * raw[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * prior_sides
        return torch.cat((centers - half_sides, centers + half_sides), dim=-1)
