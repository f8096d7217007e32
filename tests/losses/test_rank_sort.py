import math

import numpy as np
import pytest
import torch
from library_reference import RankSort, assert_agrees, draw_inputs

from detector.losses import CLASSIFICATION_LOSSES


def rank_sort(**parameters):
    return CLASSIFICATION_LOSSES.build("rank_sort", **parameters)


def gradient_of(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def test_by_hand():
    """Foreground a = 1 (quality 0.9) and b = 3 (0.5), background c = 2 and d = -1. H is 0 or 1, and H(0) = 1/2.

    a has 1 false positive and the rank 1/2 + 1 + 1 = 5/2, so its ranking error is 2/5. Its sorting error is
    (1/2 * 0.1 + 1 * 0.5) / (3/2) - 0.1 = 4/15, which b causes. No element is above b, so both errors of b are 0.
    """
    logits = torch.tensor([[1.0], [3.0], [2.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    labels, quality = torch.tensor([0, 0, 1, 1]), torch.tensor([0.9, 0.5, 0.0, 0.0], dtype=torch.float64)
    loss = rank_sort()(logits, labels, 2, quality=quality)
    assert loss.item() == pytest.approx((2 / 5 + 4 / 15) / 2, rel=1e-12)
    assert rank_sort().split(logits, labels, 2, quality=quality).tolist() == pytest.approx([2 / 15, 1 / 5], rel=1e-12)
    expected = [-(2 / 5 + 4 / 15) / 2, 4 / 15 / 2, 2 / 5 / 2, 0]
    np.testing.assert_allclose(gradient_of(loss, logits).squeeze(1), expected, rtol=1e-12, atol=1e-15)


def test_a_smoothed_step_by_hand():
    """With foreground 0, background 0.25 and delta 1/2, H is 3/4, the rank is 1/2 + 3/4, and the error is 3/5."""
    logits = torch.tensor([[0.0], [0.25]], requires_grad=True)
    loss = rank_sort()(logits, torch.tensor([0, 1]), 1)
    assert loss.item() == pytest.approx(0.6, rel=1e-6)
    np.testing.assert_allclose(gradient_of(loss, logits).squeeze(1), [-0.6, 0.6], rtol=1e-6)


@pytest.mark.parametrize("delta", [0.1, 0.5, 2.0])
def test_positive_and_negative_gradients_have_the_same_total(delta):
    logits, labels, quality = draw_inputs((2, 60, 5), torch.float64, seed=1)
    gradient = gradient_of(rank_sort(delta=delta)(logits.requires_grad_(), labels, 1, quality=quality), logits)
    up, down = gradient.clamp(max=0).sum(), gradient.clamp(min=0).sum()
    assert up < 0
    torch.testing.assert_close(-up, down, rtol=1e-10, atol=0)


def test_the_gradient_of_the_background_is_the_ranking_error():
    logits, labels, quality = draw_inputs((2, 60, 5), torch.float64, seed=2)
    target = (labels[..., None] == torch.arange(5)) & (labels >= 0)[..., None]
    gradient = gradient_of(rank_sort()(logits.requires_grad_(), labels, 1, quality=quality), logits)
    assert (gradient[~target] >= 0).all()
    ranking_error = rank_sort().split(logits, labels, 1, quality=quality)[1]
    torch.testing.assert_close(gradient[~target].sum(), ranking_error, rtol=1e-10, atol=0)


def test_the_right_order_has_zero_loss():
    logits = torch.tensor([[4.0, -3.0], [-9.0, 2.5], [-1.0, -2.0], [7.0, 9.0]], requires_grad=True)
    labels, quality = torch.tensor([0, 1, 2, -1]), torch.tensor([0.9, 0.4, math.nan, math.nan])
    loss = rank_sort()(logits, labels, 2, quality=quality)
    assert loss.item() == pytest.approx(0, abs=1e-7)
    np.testing.assert_allclose(gradient_of(loss, logits), 0, atol=1e-7)


def test_equal_qualities_have_no_sorting_error():
    logits, labels, _ = draw_inputs((2, 20, 3), torch.float64, seed=3)
    sorting, ranking = rank_sort().split(logits, labels, 1, quality=torch.full((2, 20), 0.6, dtype=torch.float64))
    torch.testing.assert_close(sorting, torch.zeros_like(sorting), rtol=0, atol=1e-12)
    torch.testing.assert_close(ranking, rank_sort()(logits, labels, 1), rtol=1e-12, atol=0)


def test_num_fg_is_not_used():
    logits, labels, quality = draw_inputs((2, 20, 3), torch.float32, seed=4)
    losses = [rank_sort()(logits, labels, n, quality=quality) for n in (0, 1, 40, torch.tensor(7.5))]
    assert all(torch.equal(loss, losses[0]) for loss in losses)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_many_rows(dtype):
    logits, labels, quality = draw_inputs((2, 120, 7), dtype, seed=5)
    expected = RankSort()(logits, labels, 1, quality)
    assert_agrees(rank_sort()(logits.requires_grad_(), labels, 1, quality=quality), logits, expected)
