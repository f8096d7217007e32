"""A loss on the order of the scores, which needs no balancing."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.core.distributed import world_size
from detector.core.validation import PositiveFloat
from detector.kernels.reference import binary_targets, widen
from detector.losses.base import CLASSIFICATION_LOSSES, ClassificationLoss

ROWS = 1024  # foreground elements that are compared with all foreground elements in one operation
PART = 2**17  # background elements in one operation, so that its intermediates stay in the cache


@CLASSIFICATION_LOSSES.register("rank_sort")
class RankSortLoss(ClassificationLoss):
    """Rank & Sort loss: the mean ranking error plus the mean sorting error of the foreground elements.

    Source: Oksuz et al. 2021, "Rank & Sort Loss for Object Detection and Instance Segmentation", equations 7 and 8.
    Formula for the foreground element i with the logit s_i and the quality q_i:

        H(x) = x / (2 delta) + 1/2, clamped to 0..1

        ranking_i = sum over background j of H(s_j - s_i) / sum over all j of H(s_j - s_i)

        sorting_i = mean_i - better_i

    mean_i is the mean of 1 - q_j over all foreground j with the weights H(s_j - s_i). better_i is the same mean over
    the foreground j with q_j >= q_i.

    The gradient is the identity update of the paper. It moves each error to the elements that cause it. So foreground
    and background always receive the same total.

    Shapes: logits (..., K), labels (...) and quality (...), as in `ClassificationLoss.forward`.

    When to use: to train without prior, alpha, gamma and normalizer. The learning rate must be tuned again.

    `split` returns the sorting error for the foreground and the ranking error for the background. The background is
    counted and summed between the scores of the foreground. For P foreground and N background elements, this takes
    O((P + N) log P) instead of the published O(P N). The sorting errors take O(P^2). The selection of the background
    elements waits for the GPU. Each process ranks its batch, and the losses of the processes are averaged.

    Args:
        delta: half the width of the step H, in logits. The default is the published value.
    """

    self_normalised = True
    use_quality = True
    row_additive = False

    def __init__(self, *, delta: PositiveFloat = 0.5):
        super().__init__()
        self.delta = delta

    def split(
        self,
        logits: Tensor,
        labels: Tensor,
        num_fg: Tensor | float,
        level_sizes: tuple[int, ...] | None = None,
        quality: Tensor | None = None,
    ) -> Tensor:
        """Return the sorting error and the ranking error. See `ClassificationLoss.split`."""
        return _RankSort.apply(*self._prepare(logits, labels, quality)) / world_size()

    @torch.no_grad()
    def elements(
        self, logits: Tensor, labels: Tensor, level_sizes: tuple[int, ...] | None = None, quality: Tensor | None = None
    ) -> Tensor:
        """Return the error of each element. See `ClassificationLoss.elements`.

        A foreground element has its sorting error. A background element has the ranking error that it causes.
        """
        wide, *others = self._prepare(logits, labels, quality)
        errors = _errors(wide, *others)
        elements = torch.zeros_like(wide)
        elements[errors.is_fg] = errors.sorting.to(wide.dtype)
        elements[errors.is_bg] = errors.ranking_caused.to(wide.dtype)
        return elements

    def _prepare(self, logits: Tensor, labels: Tensor, quality: Tensor | None) -> tuple:
        targets = binary_targets(labels, logits.shape[-1])
        quality = torch.ones_like(labels, dtype=torch.float64) if quality is None else quality.double()
        is_valid = (labels >= 0)[..., None]
        return widen(logits), targets & is_valid, ~targets & is_valid, quality[..., None], self.delta


class _Errors(NamedTuple):
    """The errors of P foreground elements and of the N background elements above the lowest foreground element.

    Attributes:
        is_fg: (..., K) bool, the P foreground elements.
        is_bg: (..., K) bool, the N background elements.
        sorting: (P,), the sorting errors, divided by P.
        sorting_grad: (P,), the gradient of the sum of `sorting`.
        ranking: (P,), the ranking errors, divided by P.
        ranking_caused: (N,), the part of the ranking errors that each background element causes, divided by P. It is
            also the gradient of the sum of `ranking` for this element.
    """

    is_fg: Tensor
    is_bg: Tensor
    sorting: Tensor
    sorting_grad: Tensor
    ranking: Tensor
    ranking_caused: Tensor


def _errors(logits: Tensor, is_fg: Tensor, is_bg: Tensor, quality: Tensor, delta: float) -> _Errors:
    fg = logits[is_fg].double()
    lowest = fg.min() if len(fg) else torch.inf
    is_bg = is_bg & ~(logits <= lowest - delta)  # the other elements rank below every foreground element; a NaN stays
    bg = logits[is_bg]

    rank, sorting, sorting_grad = _among_foreground(fg, quality.expand(logits.shape)[is_fg], delta)
    false_positives = _steps_above(fg, bg, delta)
    ranking = false_positives / (rank + false_positives)
    # each foreground element divides its error among the background elements by their H
    caused = _steps_below(bg, fg, 1 / (rank + false_positives), delta)
    count = max(len(fg), 1)
    return _Errors(is_fg, is_bg, *(x / count for x in (sorting, sorting_grad, ranking, caused)))


class _RankSort(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, is_fg: Tensor, is_bg: Tensor, quality: Tensor, delta: float) -> Tensor:
        errors = _errors(logits, is_fg, is_bg, quality, delta)
        ctx.save_for_backward(errors.is_fg, errors.is_bg, errors.sorting_grad, -errors.ranking, errors.ranking_caused)
        return torch.stack((errors.sorting.sum(), errors.ranking.sum())).to(logits.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        is_fg, is_bg, sorting_fg, ranking_fg, ranking_bg = ctx.saved_tensors
        grad = upstream.new_zeros(is_fg.shape)
        grad[is_fg] = (upstream[0] * sorting_fg + upstream[1] * ranking_fg).to(grad.dtype)
        grad[is_bg] = (upstream[1] * ranking_bg).to(grad.dtype)
        return grad, None, None, None, None


def _steps_above(few: Tensor, many: Tensor, delta: float) -> Tensor:
    """Return the sum over j of H(many_j - few_i) for each i, (P,) fp64.

    `many` is counted and summed between the scores where an H begins or ends. This needs no sort of `many` and no
    comparison of all pairs.
    """
    edges = torch.cat((few - delta, few + delta)).sort().values
    counts, moments = few.new_zeros(2, len(edges) + 1)
    for part in many.split(PART):
        bucket = torch.searchsorted(edges, part.double())
        counts += torch.bincount(bucket, minlength=len(counts))
        moments += torch.bincount(bucket, part.double(), minlength=len(counts))
    counts, moments = counts.cumsum(0), moments.cumsum(0)
    low, high = torch.searchsorted(edges, few - delta), torch.searchsorted(edges, few + delta)
    inside = counts[high] - counts[low]
    inside = inside + 0 * moments[-1]  # a NaN score must give a NaN
    return (moments[high] - moments[low] - few * inside) / (2 * delta) + inside / 2 + counts[-1] - counts[high]


def _steps_below(many: Tensor, few: Tensor, weights: Tensor, delta: float) -> Tensor:
    """Return the sum over i of weights_i H(many_j - few_i) for each j, (N,) in the dtype of `many`.

    The sums are differences of prefix sums over `few`.
    """
    few, order = few.sort()
    total = F.pad(weights[order].cumsum(0), (1, 0))
    moment = F.pad((weights[order] * few).cumsum(0), (1, 0))
    sums = torch.empty_like(many)
    for part, out in zip(many.split(PART), sums.split(PART), strict=True):
        at = part.double()
        full, begun = torch.searchsorted(few, at - delta), torch.searchsorted(few, at + delta)
        inside = total[begun] - total[full]
        out.copy_((at * inside - moment[begun] + moment[full]) / (2 * delta) + inside / 2 + total[full])
    return sums


def _among_foreground(scores: Tensor, quality: Tensor, delta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compare the foreground scores (P,) with each other.

    Returns:
        The rank of each score, its sorting error, and the gradient of the sum of the sorting errors, (P,) each.
    """
    rank, error, grad = (torch.zeros_like(scores) for _ in range(3))
    for start in range(0, len(scores), ROWS):
        i = slice(start, start + ROWS)
        above = ((scores - scores[i, None]) / (2 * delta) + 0.5).clamp(0, 1)  # H of each pair (i, j)
        in_order = above * (quality >= quality[i, None])
        missorted = above - in_order
        rank[i] = above.sum(dim=1)
        error[i] = above @ (1 - quality) / rank[i] - in_order @ (1 - quality) / in_order.sum(dim=1)
        causes = missorted.sum(dim=1)
        is_missorted = causes > 0
        grad[i] -= error[i].where(is_missorted, 0)
        grad += (error[i].where(is_missorted, 0) / causes.where(is_missorted, 1)) @ missorted
    return rank, error, grad
