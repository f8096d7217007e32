"""Equalized focal loss over several steps: its sums, and the mode in which they change."""

import copy
import math

import numpy as np
import pytest
import torch
from library_reference import EqualizedFocal, assert_agrees, draw_inputs
from losses_reference import as_float64

from detector.losses import CLASSIFICATION_LOSSES

CASES = [{}, {"alpha": None, "gamma": 1.5, "scale": 4.0}]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
RTOL = 1e-5  # the reference allows sums in fp32


def equalized(num_classes=3, **parameters):
    return CLASSIFICATION_LOSSES.build("equalized_focal", num_classes=num_classes, **parameters)


def steps(count, dtype=torch.float32, shape=(2, 13, 3)):
    return [draw_inputs(shape, dtype, seed=20 + i)[:2] for i in range(count)]


@pytest.mark.parametrize("parameters", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_match_the_formula(parameters, dtype):
    loss, reference = equalized(**parameters), EqualizedFocal(3, **parameters)
    for num_fg, (logits, labels) in zip((5, 0, 80, 2.5), steps(4, dtype), strict=True):
        expected = reference(logits, labels, num_fg)
        parts = copy.deepcopy(loss).split(logits, labels, num_fg)
        np.testing.assert_allclose(as_float64(parts), expected.parts, rtol=RTOL, atol=1e-7)
        assert_agrees(loss(logits.requires_grad_(), labels, num_fg), logits, expected, rtol=RTOL)
        reference.learn(logits, labels)
    assert 0 < reference.balance(0) < 1  # otherwise the test proves nothing


def test_by_hand():
    """With logits 0, |slope| = alpha_t (1 + ln 2) / 8. P / N is (1/4) / (3/4), so gamma_k = 2 + 8 (1 - 1/3) = 22/3."""
    logits, labels = torch.zeros(2, 1), torch.tensor([0, 1])
    loss = equalized(1)
    assert loss(logits, labels, 1).item() == pytest.approx(math.log(2) / 4, rel=1e-6)
    assert loss(logits, labels, 1).item() == pytest.approx(11 / 3 * 0.5 ** (22 / 3) * math.log(2), rel=1e-6)


def test_the_full_scale_without_foreground_and_no_scale_without_background():
    loss = equalized(2)
    loss(torch.zeros(2, 2), torch.tensor([0, 0]), 1)
    parts = loss.eval().split(torch.zeros(1, 2), torch.tensor([0]), 1)
    np.testing.assert_allclose(as_float64(parts), [math.log(2) / 16, 5 * 0.75 * 0.5**10 * math.log(2)], rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (4, 3)], ids=str)
def test_a_step_without_valid_rows_changes_no_sum(shape):
    loss, (logits, labels) = equalized(), steps(1)[0]
    loss(torch.ones(shape), torch.full(shape[:-1], -1), 1)
    first = loss(logits, labels, 3)
    assert torch.equal(first, equalized()(logits, labels, 3))
    second = copy.deepcopy(loss)(logits, labels, 3)
    loss(torch.ones(shape), torch.full(shape[:-1], -1), 1)
    assert torch.equal(loss(logits, labels, 3), second)
    assert second != first


def test_sums_change_in_training_mode_only():
    loss, (first, second) = equalized(), steps(2)
    loss.eval()
    assert torch.equal(loss(*first, 3), loss(*first, 3))
    loss.train()(*first, 3)
    expected = loss(*second, 3)  # after one training step
    other = equalized()
    other(*first, 3)
    for _ in range(2):
        assert torch.equal(other.eval()(*second, 3), expected)
        other.split(*first, 3)
    assert torch.equal(other.train()(*second, 3), expected)


def test_sums_do_not_depend_on_num_fg_and_upstream_gradient():
    (logits, labels), (second, second_labels) = steps(2)
    plain = equalized()
    plain(logits, labels, 3)
    expected = plain(second, second_labels, 3)
    loss = equalized()
    logits.requires_grad_()
    (loss(logits, labels, 50) * 1000).backward()
    assert torch.equal(loss(second, second_labels, 3), expected)


def test_state_dict_holds_the_sums():
    loss, fresh = equalized(), equalized()
    *before, last = steps(3)
    for step in before:
        loss(*step, 3)
    assert loss.state_dict() and not list(loss.parameters())
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(fresh(*last, 3), loss(*last, 3))


def test_scale_zero_stays_focal():
    loss, focal = equalized(scale=0.0), CLASSIFICATION_LOSSES.build("focal")
    for step in steps(3):
        torch.testing.assert_close(loss(*step, 3), focal(*step, 3), rtol=1e-6, atol=0)


def test_gradcheck_after_a_step():
    loss, (logits, labels) = equalized(), steps(1, torch.float64, (8, 3))[0]
    loss(logits, labels, 3)
    loss.eval()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, 2), logits.clamp(-6, 6).requires_grad_())


def test_saturated_steps_stay_finite():
    loss = equalized(2)
    logits = torch.tensor([[100.0, -100.0], [-100.0, 100.0], [100.0, 100.0]], requires_grad=True)
    for labels in (torch.tensor([0, 1, 2]), torch.tensor([1, 0, 2]), torch.tensor([2, 2, 2])):
        value = loss(logits, labels, 1)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite() and gradient.isfinite().all()


def test_num_classes_is_required():
    with pytest.raises(ValueError, match="num_classes"):
        CLASSIFICATION_LOSSES.build("equalized_focal")
