"""A loss on the order of the scores, which needs no balancing at all."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.core.distributed import world_size
from detector.core.validation import PositiveFloat
from detector.kernels.reference import binary_targets, widen
from detector.losses.base import CLASSIFICATION_LOSSES, ClassificationLoss

ROWS = 1024  # foreground elements compared with all others at once
PART = 2**17  # background elements at a time, whose intermediates stay in the cache


@CLASSIFICATION_LOSSES.register("rank_sort")
class RankSortLoss(ClassificationLoss):
    """Mean ranking error plus mean sorting error of the foreground elements (Oksuz et al. 2021, "Rank & Sort Loss for
    Object Detection and Instance Segmentation", equations 7 and 8; delta as published).

    With H(x) = x / (2 delta) + 1/2 cut to 0..1, the ranking error of foreground i is its false positives,
    sum over background j of H(s_j - s_i), divided by its rank among all elements. Its sorting error is the mean of
    1 - quality over the foregrounds ranked above it, less that mean over those of them whose quality is no lower. The
    gradient is the paper's identity update: each error is moved to the elements that cause it, so foreground and
    background always receive the same total. Use it to do without prior, alpha, gamma and normaliser; it wants its own
    learning rate. Self-normalised; `split` gives the sorting error as the foreground's part, the ranking error as the
    background's.

    Background enters by counts and sums between the foreground's scores, O((P + N) log P) for P foregrounds and N
    backgrounds in place of the published O(P N); the sorting errors are O(P^2). Choosing the backgrounds above the
    lowest foreground waits for the GPU. Each process ranks its own batch, and the processes are averaged."""

    self_normalised = True
    use_quality = True
    row_additive = False

    def __init__(self, *, delta: PositiveFloat = 0.5):
        super().__init__()
        self.delta = delta

    def split(self, logits: Tensor, labels: Tensor, num_fg: Tensor | float, level_sizes=None, quality=None) -> Tensor:
        return _RankSort.apply(*self._prepare(logits, labels, quality)) / world_size()

    @torch.no_grad()
    def elements(self, logits: Tensor, labels: Tensor, level_sizes=None, quality=None) -> Tensor:
        """A foreground element has its sorting error, a background element what it causes of the ranking errors."""
        wide, *others = self._prepare(logits, labels, quality)
        errors = _errors(wide, *others)
        elements = torch.zeros_like(wide)
        elements[errors.is_fg] = errors.sorting.to(wide.dtype)
        elements[errors.is_bg] = errors.ranking_caused.to(wide.dtype)
        return elements

    def _prepare(self, logits: Tensor, labels: Tensor, quality: Tensor | None) -> tuple:
        targets = binary_targets(labels, logits.shape[-1])
        quality = torch.ones_like(labels, dtype=torch.float64) if quality is None else quality.double()
        valid = (labels >= 0)[..., None]
        return widen(logits), targets & valid, ~targets & valid, quality[..., None], self.delta


class _Errors(NamedTuple):
    """Of P foregrounds and the N backgrounds above the lowest of them, all divided by P: (P,) but ranking_caused (N,).
    The last is each background's part of the ranking errors, which is their gradient there as well."""

    is_fg: Tensor
    is_bg: Tensor
    sorting: Tensor
    sorting_grad: Tensor
    ranking: Tensor
    ranking_caused: Tensor


def _errors(logits: Tensor, is_fg: Tensor, is_bg: Tensor, quality: Tensor, delta: float) -> _Errors:
    fg = logits[is_fg].double()
    lowest = fg.min() if len(fg) else torch.inf
    is_bg = is_bg & ~(logits <= lowest - delta)  # the others rank below every foreground; NaN shows
    bg = logits[is_bg]

    rank, sorting, sorting_grad = _among_foreground(fg, quality.expand(logits.shape)[is_fg], delta)
    false_positives = _steps_above(fg, bg, delta)
    ranking = false_positives / (rank + false_positives)
    # each foreground hands its error on in the shares of H
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
    """sum over j of H(many_j - few_i) for each i, (P,) fp64: `many` is counted and summed between the places where an H
    begins or ends, so that neither a sort of it nor a comparison of all pairs is needed."""
    edges = torch.cat((few - delta, few + delta)).sort().values
    counts, moments = few.new_zeros(2, len(edges) + 1)
    for part in many.split(PART):
        bucket = torch.searchsorted(edges, part.double())
        counts += torch.bincount(bucket, minlength=len(counts))
        moments += torch.bincount(bucket, part.double(), minlength=len(counts))
    counts, moments = counts.cumsum(0), moments.cumsum(0)
    low, high = torch.searchsorted(edges, few - delta), torch.searchsorted(edges, few + delta)
    inside = counts[high] - counts[low]
    inside = inside + 0 * moments[-1]  # a score that is not a number must show
    return (moments[high] - moments[low] - few * inside) / (2 * delta) + inside / 2 + counts[-1] - counts[high]


def _steps_below(many: Tensor, few: Tensor, weights: Tensor, delta: float) -> Tensor:
    """sum over i of weights_i H(many_j - few_i) for each j, (N,) in the format of `many`, by prefix sums over `few`."""
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
    """Of the foreground scores (P,): the rank of each among them, its sorting error, and the gradient of the sum of the
    sorting errors."""
    rank, error, grad = (torch.zeros_like(scores) for _ in range(3))
    for start in range(0, len(scores), ROWS):
        i = slice(start, start + ROWS)
        above = ((scores - scores[i, None]) / (2 * delta) + 0.5).clamp(0, 1)  # H of each pair (i, j)
        in_order = above * (quality >= quality[i, None])
        missorted = above - in_order
        rank[i] = above.sum(dim=1)
        error[i] = above @ (1 - quality) / rank[i] - in_order @ (1 - quality) / in_order.sum(dim=1)
        causes = missorted.sum(dim=1)
        caused = causes > 0
        grad[i] -= error[i].where(caused, 0)
        grad += (error[i].where(caused, 0) / causes.where(caused, 1)) @ missorted
    return rank, error, grad
