"""Gradient harmonizing mechanism (GHM): elements with a rare gradient norm get a high weight.

The aim is that neither the many easy examples nor the outliers dominate the training. Source: Li, Liu, Wang 2019,
"Gradient Harmonized Single-stage Detector".
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detector.core.distributed import sum_over_ranks
from detector.core.validation import PositiveFloat, PositiveInt, UnitFloat
from detector.kernels import gradient_norm_histogram, harmonized_terms
from detector.kernels.reference import binary_targets, counted, harmonized_elements, norm_bins, widen
from detector.losses.base import (
    BOX_LOSSES,
    CLASSIFICATION_LOSSES,
    BoxLoss,
    ClassificationLoss,
    corrected_mean,
    masked_boxes,
)

Momentum = Annotated[float, Field(ge=0, lt=1)]


class GradientDensity(nn.Module):
    """The bias-corrected running mean of the number of gradient norms in each of equal bins over [0, 1].

    R_j is the count of bin j in this step, over all ranks. m is the momentum. A step in which bin j is not empty sets
    S_j <- m S_j + (1 - m) R_j. After t_j such steps, the mean of bin j is D_j = S_j / (1 - m^t_j), which is unbiased
    from the first step on. A step in which the bin is empty does not change its mean, as in the published code. The
    published code has no correction, so in the published code the weights of a bin's first step are 1 / (1 - m) times
    as large as here.

    N is the number of valid elements. The weight of an element in bin j is

        beta_j = N D_j^-power / sum_k D_k^(1 - power)

    with the sum over the bins that are not empty in this step. With a power of 1 (the paper), beta_j is N / (M D_j) for
    M such bins, so all bins have the same total weight. With a power of 0, beta_j is N / sum_k D_k, which is equal for
    all elements.

    Args:
        bins: the number of bins.
        momentum: m.
        power: the exponent of the density.

    Attributes:
        running_counts: S, (bins,) fp32.
        steps: t, (bins,) int64.
    """

    running_counts: Tensor
    steps: Tensor

    def __init__(self, bins: int, momentum: float, power: float):
        super().__init__()
        self.bins = bins
        self.momentum = momentum
        self.power = power
        self.register_buffer("running_counts", torch.zeros(bins))
        self.register_buffer("steps", torch.zeros(bins, dtype=torch.int64))

    @torch.no_grad()
    def forward(self, counts: Tensor, *, update: bool) -> Tensor:
        """Return beta / N for each bin, (bins,) fp32, with 0 for the empty bins.

        A call with `update` is a step of the running mean. A call without `update` changes no buffer, and D_j of a bin
        without history is the count of the call.

        Args:
            counts: (bins,), the counts of this step over all ranks.
            update: whether the call is a step of the running mean; False in eval mode.
        """
        counts = counts.float()
        is_used = counts > 0
        if update:
            self.steps += is_used
            self.running_counts.lerp_(counts, (1 - self.momentum) * is_used)
        mean = corrected_mean(self.running_counts, self.steps, self.momentum)
        mean = torch.where(self.steps > 0, mean, counts)
        total = mean.pow(1 - self.power).where(is_used, 0).sum()
        return torch.where(is_used, mean.pow(-self.power) / total, 0)


@CLASSIFICATION_LOSSES.register("ghm_c")
class GHMC(ClassificationLoss):
    """GHM-C: cross entropy weighted by the inverse density of the gradient norms.

    Formula: sum_i beta_i CE_i / N over the N valid elements (Li et al. 2019, section "GHM-C Loss"). CE_i is the cross
    entropy of element i. beta_i is the inverse density of its gradient norm |p - target|, with the exponent `power`
    (see `GradientDensity`).

    Shapes: logits (..., K) and labels (...), as in `ClassificationLoss.forward`.

    When to use: as an alternative to focal loss that has no alpha and gamma. On drawn scenes, AP is 0.387, and 0.344
    with focal loss, if each loss has its best learning rate and box weight (5 seeds). The chosen box weight of GHM-C is
    0.3 (of 0.3, 1 and 3). On blood cells, AP is 0.597 from random weights (focal loss 0.603), and 0.588 from ImageNet
    weights (focal loss 0.588; 3 seeds).

    When not to use: with `power` 1, the formula of the paper, in trainings as those here. The scores of the background
    then stay higher than with focal loss, and the three APs are 0.130, 0.535 and 0.551. COCO was not tried.
    tools/benchmarks/README.md has all figures. The published recipe for COCO has `power` 1, bins 30, momentum 0.75, a
    loss weight of 1, SGD with a learning rate of 0.01, and gradient clipping at 35.

    Cost: two passes over the logits, and one all-reduce of the counts. The norms are in fp32, or in fp64 for fp64
    logits. In half precision a norm of 1 would be outside the last bin, and the worst negatives would get no gradient.

    Args:
        bins: the number of bins over [0, 1].
        momentum: the momentum of the counts.
        scope: `batch` counts all levels together. `level` counts each pyramid level alone, one after the other, with
            one shared running count, as the published code does.
        power: the exponent of the density. The paper has 1. With 0, all elements have the same weight.
            With 0 and a momentum of 0, the loss is the mean cross entropy.
    """

    self_normalised = True
    row_additive = False

    def __init__(
        self,
        *,
        bins: PositiveInt = 30,
        momentum: Momentum = 0.75,
        scope: Literal["batch", "level"] = "batch",
        power: UnitFloat = 0.5,
    ):
        super().__init__()
        self.scope = scope
        self.density = GradientDensity(bins, momentum, power)

    def split(
        self,
        logits: Tensor,
        labels: Tensor,
        num_fg: Tensor | float,
        level_sizes: tuple[int, ...] | None = None,
        quality: Tensor | None = None,
    ) -> Tensor:
        """Return the foreground and the background loss. See `ClassificationLoss.split`.

        In training mode, the call is a step of the running counts. `num_fg` and `quality` are not used.
        """
        parts, counts = self._count(logits, labels, level_sizes)
        terms = [
            harmonized_terms(*part, self.density(count, update=self.training))
            for part, count in zip(parts, counts, strict=True)
        ]
        return torch.stack(terms).sum(dim=0)

    def elements(
        self, logits: Tensor, labels: Tensor, level_sizes: tuple[int, ...] | None = None, quality: Tensor | None = None
    ) -> Tensor:
        """Return the loss of each element. See `ClassificationLoss.elements`."""
        parts, counts = self._count(logits, labels, level_sizes)
        weighted = [
            counted(harmonized_elements(widen(x), binary_targets(y, x.shape[-1]), self.density(count, update=False)), y)
            for (x, y), count in zip(parts, counts, strict=True)
        ]
        return torch.cat(weighted, dim=-2)

    def _count(
        self, logits: Tensor, labels: Tensor, level_sizes: tuple[int, ...] | None
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Return the parts with separate counts, and their histograms (parts, bins) over all ranks."""
        if self.scope == "batch" or level_sizes is None:
            parts = [(logits, labels)]
        else:
            parts = list(zip(logits.split(level_sizes, dim=-2), labels.split(level_sizes, dim=-1), strict=True))
        return parts, sum_over_ranks(torch.stack([gradient_norm_histogram(*p, self.density.bins) for p in parts]))


@BOX_LOSSES.register("ghm_r")
class GHMR(BoxLoss):
    """GHM-R: a smooth L1 loss weighted by the inverse density of the gradient norms.

    Formula: sum_i beta_i ASL1(d_i) / N over the N foreground offsets, where d is predicted - target and ASL1(d) is
    sqrt(d^2 + mu^2) - mu. beta_i is the inverse density of the gradient norm |d| / sqrt(d^2 + mu^2), with the exponent
    `power` (see `GradientDensity`). Source: Li et al. 2019, section "GHM-R Loss".

    All levels are counted together. The published code counts each pyramid level alone, and adds the losses.

    Shapes: offsets (..., 4), as in `BoxLoss.forward`.

    When to use: to compare with smooth L1. On drawn scenes with focal loss, AP is 0.583 with GHM-R and 0.584 with
    smooth L1, both with a loss weight of 1 (3 seeds; the difference is not significant). With `power` 1, the formula of
    the paper, AP is 0.504, and 0.260 with the published loss weight of 10. In the first 50 steps from random weights,
    most errors are in the last bin, and `power` 1 gives them little gradient. The published recipe for COCO has `power`
    1, mu 0.02, bins 10, momentum 0.7 and a loss weight of 10.

    Args:
        mu: the offset at which the loss changes from quadratic to linear.
        bins: the number of bins over [0, 1].
        momentum: the momentum of the counts.
        power: the exponent of the density. The paper has 1. With 0, all offsets have the same weight.
            With 0 and a momentum of 0, the loss is the mean ASL1.
    """

    self_normalised = True

    def __init__(
        self,
        *,
        mu: PositiveFloat = 0.02,
        bins: PositiveInt = 10,
        momentum: Momentum = 0.7,
        power: UnitFloat = 0.5,
    ):
        super().__init__()
        self.mu = mu
        self.density = GradientDensity(bins, momentum, power)

    def forward(
        self,
        predicted: Tensor,
        target: Tensor,
        foreground: Tensor,
        num_fg: Tensor | float,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the loss. See `BoxLoss.forward`. The loss computes its own weights, and `weights` is not used.

        In training mode, the call is a step of the running counts.
        """
        predicted, target = masked_boxes(predicted, target, foreground)
        difference = predicted - target
        length = (difference.square() + self.mu**2).sqrt()
        is_valid = foreground[..., None].expand(difference.shape)
        index = norm_bins((difference / length).detach().abs(), self.density.bins)
        # the other rows go to an extra bin: a selection of the foreground rows would wait for the GPU
        index = index.where(is_valid, self.density.bins).flatten()
        counts = torch.zeros(self.density.bins + 1, dtype=torch.int64, device=index.device)
        counts.scatter_add_(0, index, torch.ones_like(index))
        by_bin = self.density(sum_over_ranks(counts[:-1]), update=self.training)
        weights = F.pad(by_bin, (0, 1))[index].view_as(length)
        return ((length - self.mu) * weights).sum()
