import math

import numpy as np
import pytest
import torch

from detector.evaluation.anchor_scores import AnchorRanking, AnchorScores


def test_pairs_and_precisions_by_hand():
    scores = AnchorScores()
    # highest logits 3 (fg), 2 (bg), 1 (fg), 0 (bg), 2 (fg, a tie with the bg), and 9 (ignored)
    logits = torch.tensor([[3.0, -1], [-4, 2], [1, 0], [0, 0], [2, -9], [9, 9]])
    scores.update(logits[:3], torch.tensor([0, 2, 1]))
    scores.update(logits[3:], torch.tensor([2, 0, -1]))
    ranking = scores.compute()
    # fg 3, 2, 1 against bg 2, 0: of six pairs 3>2, 3>0, 2>0, 1>0 are correct and 2=2 counts half
    assert ranking.roc_auc == pytest.approx(4.5 / 6)
    # precision 1/1 at threshold 3, 2/3 at 2 and 3/4 at 1; each threshold adds a third of the recall
    assert ranking.average_precision == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_numbers_of_batches_equal_sorting_all_scores():
    generator = torch.Generator().manual_seed(0)
    scores, best, is_fg = AnchorScores(), [], []
    for _ in range(5):
        logits = 2 * torch.randn(4, 500, 3, generator=generator) - 4
        labels = torch.randint(-1, 4, (4, 500), generator=generator)
        logits = logits + 1.5 * (labels < 3)[..., None]
        scores.update(logits, labels)
        best.append(logits.amax(-1)[labels >= 0])
        is_fg.append(labels[labels >= 0] < 3)
    best, is_fg = torch.cat(best).double().numpy(), torch.cat(is_fg).numpy()
    fg, bg = best[is_fg], best[~is_fg]
    auc = np.mean((fg[:, None] > bg) + 0.5 * (fg[:, None] == bg))
    order = is_fg[np.argsort(-best)]
    precision = np.cumsum(order) / np.arange(1, len(order) + 1)
    ranking = scores.compute()
    assert ranking.roc_auc == pytest.approx(auc, abs=1e-4)
    assert ranking.average_precision == pytest.approx(precision[order].mean(), abs=2e-4)


def auc_by_ranks(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return scikit-learn's number from the ranks: (sum of the positives' ranks - P (P + 1) / 2) / (P N).

    Equal scores have their mean rank (Mann and Whitney 1947).
    """
    ranks = [(scores < score).sum() + ((scores == score).sum() + 1) / 2 for score in scores]
    num_positive = positive.sum()
    above = np.array(ranks)[positive].sum() - num_positive * (num_positive + 1) / 2
    return above / (num_positive * (~positive).sum())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_infinite_and_large_logits_are_in_the_outer_bins(dtype: torch.dtype):
    best = torch.tensor([math.inf, 1e30, 3e9, 23, 1, -1, -23, -5e9, -1e30, -math.inf], dtype=dtype)
    positive = torch.tensor([1, 1, 0, 1, 0, 1, 0, 1, 0, 0], dtype=torch.bool)
    for flipped in (False, True):
        values = -best if flipped else best
        scores = AnchorScores()
        scores.update(torch.stack((values, torch.full_like(values, -math.inf)), dim=1), torch.where(positive, 0, 2))
        expected = auc_by_ranks(values.double().clamp(-24, 24).numpy(), positive.numpy())
        assert scores.compute().roc_auc == pytest.approx(expected)
    scores = AnchorScores()
    scores.update(torch.tensor([[math.inf], [0.0], [-math.inf]]), torch.tensor([0, 1, 1]))
    assert scores.compute() == AnchorRanking(roc_auc=1.0, average_precision=1.0)


def test_a_nan_logit_makes_the_numbers_nan():
    scores = AnchorScores()
    scores.update(torch.tensor([[1.0], [0.0], [math.nan]]), torch.tensor([0, 1, -1]))
    assert scores.compute().roc_auc == 1.0  # an ignored anchor does not count
    scores.update(torch.tensor([[math.nan]]), torch.tensor([0]))
    assert all(math.isnan(value) for value in scores.compute().to_json().values())


@pytest.mark.parametrize("label", [-1, 0, 2])
def test_anchors_of_one_kind_have_no_numbers(label):
    scores = AnchorScores()
    scores.update(torch.randn(5, 2), torch.full((5,), label))
    assert all(math.isnan(value) for value in scores.compute().to_json().values())
