"""Box coders: between boxes and what a head gives for each prior."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)  # a decoded side is at most 62.5 times its prior's: exp() stays finite


@dataclass(frozen=True, slots=True)
class DeltaCoder:
    """Offsets from a prior's centre and sides (R-CNN, Girshick et al. 2014).

    ((x - xa) / wa, (y - ya) / ha, log(w / wa), log(h / ha)) of the centres and sides of box and prior.
    """

    num_outputs: int = 4

    def encode(self, boxes: Tensor, priors: Tensor) -> Tensor:
        """Turn boxes into offsets, (..., 4) xyxy each. Sides are taken as at least a thousandth of a pixel, so nothing
        is infinite."""
        prior_sides = priors[..., 2:] - priors[..., :2]
        prior_centres = priors[..., :2] + 0.5 * prior_sides
        sides = boxes[..., 2:] - boxes[..., :2]
        centres = boxes[..., :2] + 0.5 * sides
        log_sides = (sides.clamp(min=1e-3) / prior_sides).log()
        return torch.cat(((centres - prior_centres) / prior_sides, log_sides), dim=-1)

    def decode(self, raw: Tensor, priors: Tensor) -> Tensor:
        """Turn offsets into boxes: the inverse of `encode`; log-scales are capped at log(1000/16)."""
        prior_sides = priors[..., 2:] - priors[..., :2]
        centres = raw[..., :2] * prior_sides + (priors[..., :2] + 0.5 * prior_sides)
        half_sides = 0.5 * raw[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * prior_sides
        return torch.cat((centres - half_sides, centres + half_sides), dim=-1)
