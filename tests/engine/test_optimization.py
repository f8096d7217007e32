import math
from functools import partial

import pytest
import torch
from torch import nn

from detector.engine.optimization import fit_warmup, learning_rate, make_optimizer, parameter_groups

rate = partial(
    learning_rate,
    num_steps=100,
    peak=0.1,
    schedule="step",
    milestones=(0.6, 0.8),
    step_factor=0.1,
    warmup_steps=0,
    warmup_factor=0.0,
)


def test_milestones_multiply_from_their_step_on():
    assert [rate(step) for step in (0, 59, 60, 79, 80, 99)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_cosine_falls_from_the_peak_to_zero():
    cosine = partial(rate, schedule="cosine")
    assert [cosine(0), cosine(25), cosine(50)] == pytest.approx([0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05])
    assert 0 < cosine(99) < 1e-4 and cosine(100) == 0
    rates = [cosine(step) for step in range(100)]
    assert rates == sorted(rates, reverse=True)


def test_constant_stays():
    assert {rate(step, schedule="constant") for step in range(100)} == {0.1}


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_warm_up_is_a_line_from_its_factor_to_one(schedule: str):
    whole = partial(rate, schedule=schedule)
    warm = partial(whole, warmup_steps=10, warmup_factor=0.2)
    assert [warm(step) / whole(step) for step in (0, 5, 9, 10, 99)] == pytest.approx([0.2, 0.6, 0.92, 1, 1])


@pytest.mark.parametrize(
    ("warmup_steps", "num_steps", "fitted"),
    [(0, 30, 0), (500, 30, 3), (500, 5, 0), (3, 30, 3), (50, 2000, 50), (500, 88_000, 500), (100, 999, 99)],
)
def test_a_warm_up_takes_at_most_a_tenth_of_the_run(warmup_steps: int, num_steps: int, fitted: int):
    assert fit_warmup(warmup_steps, num_steps) == fitted


@pytest.fixture
def model() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    model[2].weight.requires_grad_(False)
    return model


def test_norms_and_biases_do_not_decay_and_frozen_parameters_are_left_out(model: nn.Module):
    decayed, plain = parameter_groups(model, weight_decay=0.01)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0)
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight)}
    expected = (model[0].bias, model[1].weight, model[1].bias, model[2].bias)
    assert {id(p) for p in plain["params"]} == {id(p) for p in expected}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_without_gradient_only_decays(model: nn.Module, name: str):
    optimizer = make_optimizer(model, name=name, lr=0.5, momentum=0.9, weight_decay=0.1)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for key, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[key] * (0.95 if key == "0.weight" else 1))


def test_sgd_has_momentum(model: nn.Module):
    optimizer = make_optimizer(model, name="sgd", lr=0.5, momentum=0.9, weight_decay=0.0)
    before = model[0].bias.detach().clone()
    for _ in range(2):
        model[0].bias.grad = torch.ones(4)
        optimizer.step()
    torch.testing.assert_close(model[0].bias.detach(), before - 0.5 * (1 + 1.9))
