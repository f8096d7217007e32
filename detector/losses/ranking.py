"""A loss on the order of the scores, which needs no balancing at all."""

import torch
from torch import Tensor

from detector.kernels.reference import binary_targets, widen
from detector.losses.base import ClassificationLoss
from detector.registry import CLASSIFICATION_LOSSES, PositiveFloat

ROWS = 1024  # foreground elements compared with all others at once


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

    Background enters by sorted scores and prefix sums, O((P + N) log(P + N)) for P foregrounds and N backgrounds in
    place of the published O(P N). Choosing the backgrounds above the lowest foreground waits for the GPU once. Ranks
    are those of this process's batch."""

    self_normalised = True
    use_quality = True
    row_additive = False

    def __init__(self, *, delta: PositiveFloat = 0.5):
        super().__init__()
        self.delta = delta

    def split(self, logits: Tensor, labels: Tensor, num_fg: Tensor | float, level_sizes=None, quality=None) -> Tensor:
        targets = binary_targets(labels, logits.shape[-1])
        quality = torch.ones_like(labels, dtype=torch.float64) if quality is None else quality.double()
        valid = (labels >= 0)[..., None]
        return _RankSort.apply(widen(logits), targets & valid, ~targets & valid, quality[..., None], self.delta)


class _RankSort(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, is_fg: Tensor, is_bg: Tensor, quality: Tensor, delta: float) -> Tensor:
        fg, order = logits[is_fg].double().sort()
        quality = quality.expand(logits.shape)[is_fg][order]
        lowest = fg[0] if len(fg) else torch.inf
        is_bg = is_bg & (logits > lowest - delta)  # the others rank below every foreground
        bg, bg_order = logits[is_bg].double().sort()

        rank, sorting, sorting_grad = _among_foreground(fg, quality, delta)
        false_positives = _sum_of_steps(fg, bg, torch.ones_like(bg), delta)
        ranking = false_positives / (rank + false_positives)
        # each foreground hands its error on in the shares of H; -x mirrors H, so that the roles may change
        ranking_bg_grad = _sum_of_steps(-bg.flip(0), -fg.flip(0), (1 / (rank + false_positives)).flip(0), delta).flip(0)

        count = max(len(fg), 1)
        ctx.save_for_backward(
            is_fg,
            is_bg,
            sorting_grad[order.argsort()] / count,
            -ranking[order.argsort()] / count,
            ranking_bg_grad[bg_order.argsort()] / count,
        )
        return torch.stack((sorting.sum(), ranking.sum())).to(logits.dtype) / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        is_fg, is_bg, sorting_fg, ranking_fg, ranking_bg = ctx.saved_tensors
        grad = upstream.new_zeros(is_fg.shape)
        grad[is_fg] = (upstream[0] * sorting_fg + upstream[1] * ranking_fg).to(grad.dtype)
        grad[is_bg] = (upstream[1] * ranking_bg).to(grad.dtype)
        return grad, None, None, None, None


def _sum_of_steps(at: Tensor, scores: Tensor, weights: Tensor, delta: float) -> Tensor:
    """sum over j of weights_j H(scores_j - at_i) for each i; scores sorted, all fp64."""
    start = scores.new_zeros(1)
    total = torch.cat((start, weights.cumsum(0)))
    moment = torch.cat((start, (weights * scores).cumsum(0)))
    low, high = torch.searchsorted(scores, at - delta), torch.searchsorted(scores, at + delta)
    partial = total[high] - total[low]
    partial = (moment[high] - moment[low] - at * partial) / (2 * delta) + partial / 2
    return partial + total[-1] - total[high]


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
