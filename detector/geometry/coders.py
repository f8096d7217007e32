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


@dataclass(frozen=True, slots=True)
class DistanceCoder:
    """A coder with the distances from the center of the prior to the four sides of the box (Tian et al. 2019, FCOS).

    The distances are ((x - x1) / w, (y - y1) / h, (x2 - x) / w, (y2 - y) / h). (x, y) is the center of the prior, and w
    and h are its sides. A distance is negative where the center is outside the box.
    """

    num_outputs: int = 4

    def encode(self, boxes: Tensor, priors: Tensor) -> Tensor:
        """Return the distances (..., 4) of boxes: left, top, right, bottom.

        Args:
            boxes: (..., 4) xyxy in pixels.
            priors: (..., 4) xyxy in pixels.
        """
        sides, centers = _sides_and_centers(priors)
        return torch.cat(((centers - boxes[..., :2]) / sides, (boxes[..., 2:] - centers) / sides), dim=-1)

    def decode(self, raw: Tensor, priors: Tensor) -> Tensor:
        """Return the boxes (..., 4) xyxy in pixels of distances: the inverse of `encode`.

        Args:
            raw: (..., 4), the distances.
            priors: (..., 4) xyxy in pixels.
        """
        sides, centers = _sides_and_centers(priors)
        return torch.cat((centers - raw[..., :2] * sides, centers + raw[..., 2:] * sides), dim=-1)


@dataclass(frozen=True, slots=True)
class DistributionCoder:
    """A coder with a distribution of each of the four distances of `DistanceCoder` (Li et al. 2020, GFL).

    A distribution has the n + 1 values 0, 1, ..., n = `reg_max`. The head predicts its logits. The distance is the
    expected value, so it is in 0..n.

    Attributes:
        reg_max: the largest distance, in sides of the prior.
    """

    reg_max: int

    @property
    def num_outputs(self) -> int:
        """The number of logits of the four distributions."""
        return 4 * (self.reg_max + 1)

    def encode(self, boxes: Tensor, priors: Tensor) -> Tensor:
        """Return the target probabilities (..., 4 * (n + 1)) of boxes.

        A distance is clamped to 0..n - 0.01. Only the two values next to the distance have a probability, and the
        expected value is the distance. The probabilities are no logits, so `decode` is not the inverse.

        Args:
            boxes: (..., 4) xyxy in pixels.
            priors: (..., 4) xyxy in pixels.
        """
        distances = DistanceCoder().encode(boxes, priors).clamp(0, self.reg_max - 0.01)[..., None]
        return (1 - (distances - self._values(distances)).abs()).clamp(min=0).flatten(-2)

    def decode(self, raw: Tensor, priors: Tensor) -> Tensor:
        """Return the boxes (..., 4) xyxy in pixels of logits.

        Args:
            raw: (..., 4 * (n + 1)), the logits of the distributions.
            priors: (..., 4) xyxy in pixels.
        """
        probabilities = raw.unflatten(-1, (4, self.reg_max + 1)).softmax(dim=-1)
        # a sum, because autocast computes a matrix product in half precision
        distances = (probabilities * self._values(probabilities)).sum(dim=-1)
        return DistanceCoder().decode(distances, priors)

    def _values(self, like: Tensor) -> Tensor:
        return torch.arange(self.reg_max + 1, device=like.device, dtype=like.dtype)


def _sides_and_centers(priors: Tensor) -> tuple[Tensor, Tensor]:
    return priors[..., 2:] - priors[..., :2], (priors[..., :2] + priors[..., 2:]) / 2
