import math

import numpy as np
import pytest
import torch
from library_reference import BalancedL1, assert_agrees
from losses_reference import as_float64, draw_boxes

from detector.losses import BOX_LOSSES

CASES = [{}, {"alpha": 1.0, "gamma": 1.0}, {"alpha": 0.2, "gamma": 1.5}]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 4), (7, 4), (2, 13, 4), (0, 4), (3, 0, 4)]

each_case = pytest.mark.parametrize("parameters", CASES, ids=str)


def balanced_l1(**parameters):
    return BOX_LOSSES.build("balanced_l1", **parameters)


def check(parameters, predicted, target, foreground, num_fg):
    expected = BalancedL1(**parameters)(predicted, target, foreground, num_fg)
    predicted.requires_grad_()
    assert_agrees(balanced_l1(**parameters)(predicted, target, foreground, num_fg), predicted, expected)


def test_defaults():
    arguments = draw_boxes((7, 4), torch.float32, seed=1)
    assert torch.equal(balanced_l1()(*arguments, 3), balanced_l1(alpha=0.5, gamma=1.5)(*arguments, 3))


@each_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_formula(parameters, dtype, shape):
    check(parameters, *draw_boxes(shape, dtype, seed=2), num_fg=5)


@each_case
@pytest.mark.parametrize("num_fg", [0, 0.5, 40, torch.tensor(0), torch.tensor(4.5)], ids=str)
def test_num_fg_is_a_number_or_a_tensor_clamped_at_one(parameters, num_fg):
    check(parameters, *draw_boxes((7, 4), torch.float32, seed=3), num_fg)


@each_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_far_near_and_exact_predictions(parameters, dtype):
    predicted = torch.tensor([[1e4, -1e4, 100.0, -100.0], [0.5, 1.0, -1.0, 2**-10], [1.0, 2.0, 3.0, 4.0]], dtype=dtype)
    target = torch.zeros(3, 4, dtype=torch.promote_types(dtype, torch.float32))
    target[2] = predicted[2]
    check(parameters, predicted, target, torch.ones(3, dtype=torch.bool), 3)


@each_case
def test_strided_views(parameters):
    predicted, target, foreground = draw_boxes((2, 5, 8, 4), torch.float32, seed=4)
    # like the output of a head: a view (B, H, W, 4) of (B, 4, H, W), without the first row and every second column
    predicted, target = (
        t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)[:, 1:, ::2] for t in (predicted, target)
    )
    check(parameters, predicted, target, foreground[:, 1:, ::2], num_fg=7)


@each_case
def test_gradcheck(parameters):
    predicted, target, foreground = draw_boxes((6, 4), torch.float64, seed=5)
    foreground[:3] = torch.tensor([True, True, False])
    loss = balanced_l1(**parameters)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, foreground, 2), predicted.requires_grad_())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_background_rows_may_hold_any_value(dtype):
    predicted, target, _ = draw_boxes((4, 4), dtype, seed=6)
    foreground = torch.tensor([True, False, True, False])
    expected = BalancedL1()(predicted, target, foreground, 2)
    target[1], target[3] = math.inf, math.nan
    assert_agrees(balanced_l1()(predicted.requires_grad_(), target, foreground, 2), predicted, expected)


@pytest.mark.parametrize("target_value", [0.0, math.nan, math.inf])
def test_no_foreground(target_value):
    predicted = draw_boxes((2, 9, 4), torch.float32, seed=7)[0].requires_grad_()
    target = torch.full((2, 9, 4), target_value)
    loss = balanced_l1()(predicted, target, torch.zeros(2, 9, dtype=torch.bool), 0)
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert loss == 0 and (gradient == 0).all()


def test_by_hand():
    """With alpha = gamma = 1, b is e - 1. The value at 1 is e / b - 1 = 1 / b, and the slope above 1 is 1."""
    b = math.e - 1
    predicted = torch.tensor([[0.0, 1.0, -3.0, 0.5]], dtype=torch.float64, requires_grad=True)
    loss = balanced_l1(alpha=1.0, gamma=1.0)(predicted, torch.zeros(1, 4).double(), torch.tensor([True]), 1)
    half = (b / 2 + 1) / b * math.log(b / 2 + 1) - 0.5
    assert loss.item() == pytest.approx(1 / b + (1 / b + 2) + half, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, predicted)
    np.testing.assert_allclose(gradient[0], [0, 1, -1, math.log(b / 2 + 1)], rtol=1e-12, atol=0)


@each_case
def test_value_and_slope_are_continuous_at_one(parameters):
    predicted = torch.tensor([[1 - 1e-9, 1 + 1e-9, -1 + 1e-9, -1 - 1e-9]], dtype=torch.float64, requires_grad=True)
    target, loss = torch.zeros(1, 4, dtype=torch.float64), balanced_l1(**parameters)
    (gradient,) = torch.autograd.grad(loss(predicted, target, torch.tensor([True]), 1), predicted)
    np.testing.assert_allclose(as_float64(gradient.abs()), parameters.get("gamma", 1.5), rtol=1e-7)
    values = [
        loss(torch.full((1, 4), x).double(), target, torch.tensor([True]), 1).item() for x in predicted[0].tolist()
    ]
    np.testing.assert_allclose(values, values[0], rtol=1e-7)
