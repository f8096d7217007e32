"""Gradient harmonising mechanism: every range of gradient norms weighs the same, so that neither the many easy examples
nor the outliers drive the training (Li, Liu, Wang 2019, "Gradient Harmonized Single-stage Detector")."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detector.core.distributed import sum_over_ranks
from detector.core.validation import PositiveFloat, PositiveInt
from detector.kernels import gradient_norm_histogram, harmonised_terms
from detector.kernels.reference import binary_targets, counted, harmonised_elements, norm_bins, widen
from detector.losses.base import (
    BOX_LOSSES,
    CLASSIFICATION_LOSSES,
    BoxLoss,
    ClassificationLoss,
    masked_boxes,
    running_mean,
)

Momentum = Annotated[float, Field(ge=0, lt=1)]


class GradientDensity(nn.Module):
    """A running mean of how many gradient norms fall in each of equal bins over [0, 1], with bias correction.

    With R_j the count of bin j in this batch (over all ranks), S_j <- m S_j + (1 - m) R_j after every batch, empty bins
    included, and S_j / (1 - m^t) after t steps is unbiased from the first step on (the published code starts at S = 0
    without correction, and weighs a bin's first touch 1 / (1 - m) times too much). An element's weight is
    beta = N / (M S_j / (1 - m^t)), M the number of bins not empty in this step, N the number of valid elements.
    In eval mode the buffers stay, and without any history the counts of the call itself serve.
    """

    running_counts: Tensor
    steps: Tensor

    def __init__(self, bins: int, momentum: float):
        super().__init__()
        self.bins = bins
        self.momentum = momentum
        self.register_buffer("running_counts", torch.zeros(bins))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, counts: Tensor) -> Tensor:
        """counts (bins,) of this step over all ranks -> beta / N of an element of each bin, 0 for the empty ones."""
        return self.weights(counts, update=self.training)

    @torch.no_grad()
    def weights(self, counts: Tensor, *, update: bool = False) -> Tensor:
        """What `forward` gives; the buffers move where `update`."""
        now = counts.float()
        corrected = running_mean(self.running_counts, self.steps, now, self.momentum, update=update)
        # a bin in use has a running count, except in eval mode where it may never have been touched
        corrected = torch.where(corrected > 0, corrected, now)
        num_used = (now > 0).sum()
        return torch.where(now > 0, 1 / (corrected * num_used).clamp(min=1e-6), 0)


@CLASSIFICATION_LOSSES.register("ghm_c")
class GHMC(ClassificationLoss):
    """sum_i beta_i CE_i / N over the N valid elements, beta_i the inverse density of its gradient norm |p - target|.

    `scope: batch` counts over the whole batch; `level` applies the rule to one pyramid level after the other with one
    shared running count, as the published code does. Published recipe: bins 30, momentum 0.75, loss weight 1, SGD 0.01,
    gradient clipping at 35. fp32 inside: in half precision a norm of 1 would fall beyond the last bin and the worst
    negatives would get no gradient. Use it where labels are noisy; it needs no alpha and no gamma. Two passes over the
    logits, and one all-reduce of the counts."""

    self_normalised = True
    row_additive = False

    def __init__(
        self, *, bins: PositiveInt = 30, momentum: Momentum = 0.75, scope: Literal["batch", "level"] = "batch"
    ):
        super().__init__()
        self.scope = scope
        self.density = GradientDensity(bins, momentum)

    def split(self, logits: Tensor, labels: Tensor, num_fg: Tensor | float, level_sizes=None, quality=None) -> Tensor:
        parts, counts = self._count(logits, labels, level_sizes)
        terms = [harmonised_terms(*part, self.density(now)) for part, now in zip(parts, counts, strict=True)]
        return torch.stack(terms).sum(dim=0)

    def elements(self, logits: Tensor, labels: Tensor, level_sizes=None, quality=None) -> Tensor:
        parts, counts = self._count(logits, labels, level_sizes)
        weighted = [
            counted(harmonised_elements(widen(x), binary_targets(y, x.shape[-1]), self.density.weights(now)), y)
            for (x, y), now in zip(parts, counts, strict=True)
        ]
        return torch.cat(weighted, dim=-2)

    def _count(
        self, logits: Tensor, labels: Tensor, level_sizes: tuple[int, ...] | None
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """The parts that are counted one by one, and the histogram (parts, bins) of each over all ranks."""
        if self.scope == "batch" or level_sizes is None:
            parts = [(logits, labels)]
        else:
            parts = list(zip(logits.split(level_sizes, dim=-2), labels.split(level_sizes, dim=-1), strict=True))
        return parts, sum_over_ranks(torch.stack([gradient_norm_histogram(*p, self.density.bins) for p in parts]))


@BOX_LOSSES.register("ghm_r")
class GHMR(BoxLoss):
    """sum_i beta_i ASL1_i / N over the N foreground offsets: ASL1(d) = sqrt(d^2 + mu^2) - mu, beta_i the inverse
    density of its gradient norm |d| / sqrt(d^2 + mu^2). Published recipe: mu 0.02, bins 10, momentum 0.7, weight 10."""

    self_normalised = True

    def __init__(self, *, mu: PositiveFloat = 0.02, bins: PositiveInt = 10, momentum: Momentum = 0.7):
        super().__init__()
        self.mu = mu
        self.density = GradientDensity(bins, momentum)

    def forward(self, predicted: Tensor, target: Tensor, foreground: Tensor, num_fg: Tensor | float) -> Tensor:
        predicted, target = masked_boxes(predicted, target, foreground)
        difference = predicted - target
        length = (difference.square() + self.mu**2).sqrt()
        counts = foreground[..., None].expand(difference.shape)
        index = norm_bins((difference / length).detach().abs(), self.density.bins)
        # rows that do not count go to a bin of their own: selecting the others would wait for the GPU
        index = index.where(counts, self.density.bins).flatten()
        now = torch.zeros(self.density.bins + 1, dtype=torch.int64, device=index.device)
        now.scatter_add_(0, index, torch.ones_like(index))
        weights = F.pad(self.density(sum_over_ranks(now[:-1])), (0, 1))[index].view_as(length)
        return ((length - self.mu) * weights).sum()
