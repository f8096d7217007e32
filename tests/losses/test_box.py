import numpy as np
import pytest
import torch
import torch.nn.functional as F
from losses_reference import BOX, as_float64, assert_matches, draw_boxes

from detector.losses import BOX_LOSSES

CASES = [
    ("smooth_l1", {"beta": 1 / 9}),
    ("smooth_l1", {"beta": 1.0}),
    ("l1", {}),
    ("ghm_r", {"mu": 0.02, "bins": 10, "momentum": 0.7, "power": 0.5}),
    ("ghm_r", {"mu": 0.02, "bins": 30, "momentum": 0.0, "power": 1.0}),
    ("ghm_r", {"mu": 0.1, "bins": 1, "momentum": 0.5, "power": 1.0}),
]
DEFAULTS = [CASES[0], CASES[3]]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 4), (7, 4), (2, 13, 4), (0, 4), (3, 0, 4)]

each_loss = pytest.mark.parametrize(
    ("name", "parameters"), CASES, ids=[f"{n}-{'-'.join(f'{v:.3g}' for v in p.values())}" for n, p in CASES]
)


def build(name, parameters):
    return BOX_LOSSES.build(name, **parameters)


def check(name, parameters, predicted, target, foreground, num_fg, upstream=1.0):
    """Compare value and gradient of a new loss with a new reference."""
    predicted.requires_grad_()
    expected = BOX[name](**parameters)(predicted, target, foreground, num_fg)
    loss = build(name, parameters)(predicted, target, foreground, num_fg)
    assert_matches(loss, predicted, expected, upstream=upstream, fp32_counts=name == "ghm_r")


def test_names():
    assert set(BOX) <= set(BOX_LOSSES.names())


@pytest.mark.parametrize(("name", "defaults"), DEFAULTS)
def test_defaults(name, defaults):
    plain, explicit = build(name, {}), build(name, defaults)
    for seed in range(2):
        arguments = draw_boxes((7, 4), torch.float32, seed)
        assert torch.equal(plain(*arguments, 3), explicit(*arguments, 3))


@each_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_formula(name, parameters, dtype, shape):
    predicted, target, foreground = draw_boxes(shape, dtype, seed=1, mu=parameters.get("mu", 0.02))
    foreground[..., :1] = True
    check(name, parameters, predicted, target, foreground, num_fg=5, upstream=3.7)


@each_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_views(name, parameters, dtype):
    predicted, target, foreground = draw_boxes((2, 5, 8, 4), dtype, seed=2, mu=parameters.get("mu", 0.02))
    # like the output of a head: a view (B, H, W, 4) of (B, 4, H, W), without the first row and every second column
    predicted, target = (
        t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)[:, 1:, ::2] for t in (predicted, target)
    )
    foreground = foreground[:, 1:, ::2]
    assert not any(t.is_contiguous() for t in (predicted, target, foreground))
    check(name, parameters, predicted, target, foreground, num_fg=7, upstream=3.7)


@each_loss
def test_gradcheck(name, parameters):
    predicted, target, foreground = draw_boxes((6, 4), torch.float64, seed=3, mu=parameters.get("mu", 0.02))
    foreground[:3] = torch.tensor([True, True, False])
    loss = lambda x: build(name, parameters)(x, target, foreground, 2)  # noqa: E731
    assert torch.autograd.gradcheck(loss, predicted.requires_grad_())


@each_loss
@pytest.mark.parametrize("num_fg", [0, 0.5, 1, 2.5, 40, torch.tensor(0), torch.tensor(4), torch.tensor(4.5)], ids=str)
def test_num_fg_is_a_number_or_a_tensor_clamped_at_one(name, parameters, num_fg):
    predicted, target, foreground = draw_boxes((7, 4), torch.float32, seed=4, mu=parameters.get("mu", 0.02))
    check(name, parameters, predicted, target, foreground, num_fg)


@each_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_background_rows_may_hold_any_value(name, parameters, dtype):
    predicted, target, _ = draw_boxes((6, 4), dtype, seed=5, mu=parameters.get("mu", 0.02))
    foreground = torch.tensor([True, False, True, False, False, True])
    expected = BOX[name](**parameters)(predicted, target, foreground, 3)
    target[1], target[3] = float("inf"), float("nan")
    target[4] = torch.tensor([float("-inf"), 3e38, float("nan"), 0.0], dtype=target.dtype)
    predicted.requires_grad_()
    loss = build(name, parameters)(predicted, target, foreground, 3)
    (gradient,) = torch.autograd.grad(loss, predicted, retain_graph=True)
    assert (gradient[~foreground] == 0).all()
    assert_matches(loss, predicted, expected, fp32_counts=name == "ghm_r")


@each_loss
@pytest.mark.parametrize("target_value", [0.0, float("nan"), float("inf")])
def test_no_foreground(name, parameters, target_value):
    predicted = draw_boxes((2, 9, 4), torch.float32, seed=6)[0].requires_grad_()
    target = torch.full((2, 9, 4), target_value)
    loss = build(name, parameters)(predicted, target, torch.zeros(2, 9, dtype=torch.bool), 0)
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert loss == 0 and (gradient == 0).all()


@each_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_far_and_exact_predictions(name, parameters, dtype):
    predicted = torch.tensor([[1e4, -1e4, 100.0, -100.0], [0.25, 3.0, -2.0, 1.0]], dtype=dtype)
    target = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, 3.5, -2.5, 2.0]])
    check(name, parameters, predicted, target.to(torch.promote_types(dtype, torch.float32)), torch.ones(2).bool(), 2)


@each_loss
def test_a_perfect_box_has_zero_loss(name, parameters):
    boxes = draw_boxes((7, 4), torch.float32, seed=7)[0]
    predicted = boxes.clone().requires_grad_()
    loss = build(name, parameters)(predicted, boxes, torch.ones(7, dtype=torch.bool), 7)
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert loss == 0 and (gradient == 0).all()


@each_loss
def test_runs_without_gradients(name, parameters):
    predicted, target, foreground = draw_boxes((7, 4), torch.float32, seed=8, mu=parameters.get("mu", 0.02))
    with torch.no_grad():
        loss = build(name, parameters)(predicted.requires_grad_(), target, foreground, 3)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, build(name, parameters)(predicted, target, foreground, 3).detach())


@each_loss
def test_second_backward_and_second_call(name, parameters):
    predicted, target, foreground = draw_boxes((7, 4), torch.float32, seed=9, mu=parameters.get("mu", 0.02))
    predicted.requires_grad_()
    before = predicted.detach().clone()
    expected = BOX[name](**parameters)(predicted, target, foreground, 3).gradient
    loss = build(name, parameters)
    first, second = (loss(predicted, target, foreground, 3) for _ in range(2))
    first.backward(retain_graph=True)
    first.backward(retain_graph=True)
    np.testing.assert_allclose(as_float64(predicted.grad), 2 * expected, rtol=1e-5, atol=2e-6)
    (first + second).backward()
    np.testing.assert_allclose(as_float64(predicted.grad), 4 * expected, rtol=1e-5, atol=4e-6)
    assert torch.equal(predicted, before)


@pytest.mark.parametrize("beta", [1 / 9, 0.5, 1.0])
def test_smooth_l1_equals_torch(beta):
    predicted, target, foreground = draw_boxes((2, 13, 4), torch.float64, seed=10)
    theirs = F.smooth_l1_loss(predicted[foreground], target[foreground], beta=beta, reduction="sum") / 4
    torch.testing.assert_close(build("smooth_l1", {"beta": beta})(predicted, target, foreground, 4), theirs)


def test_l1_equals_torch():
    predicted, target, foreground = draw_boxes((2, 13, 4), torch.float64, seed=11)
    theirs = F.l1_loss(predicted[foreground], target[foreground], reduction="sum") / 4
    torch.testing.assert_close(build("l1", {})(predicted, target, foreground, 4), theirs)
