import math
from functools import partial

import pytest
import torch
from torch import nn

from detector.engine.optimization import make_optimizer, parameter_groups
from detector.engine.schedule import Schedule, learning_rate
from detector.engine.settings import TrainSettings

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


def test_milestones_multiply_the_rate_from_their_step_on():
    assert [rate(step) for step in (0, 59, 60, 79, 80, 99)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_cosine_falls_from_the_peak_to_zero():
    cosine = partial(rate, schedule="cosine")
    assert [cosine(0), cosine(25), cosine(50)] == pytest.approx([0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05])
    assert 0 < cosine(99) < 1e-4 and cosine(100) == 0
    rates = [cosine(step) for step in range(100)]
    assert rates == sorted(rates, reverse=True)


def test_a_constant_rate_does_not_change():
    assert {rate(step, schedule="constant") for step in range(100)} == {0.1}


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_the_warm_up_is_linear_from_its_factor_to_1(schedule: str):
    cold = partial(rate, schedule=schedule)
    warm = partial(cold, warmup_steps=10, warmup_factor=0.2)
    assert [warm(step) / cold(step) for step in (0, 5, 9, 10, 99)] == pytest.approx([0.2, 0.6, 0.92, 1, 1])


@pytest.mark.parametrize(
    ("warmup_steps", "num_steps", "expected"),
    [(0, 30, 0), (500, 30, 3), (500, 5, 0), (3, 30, 3), (50, 2000, 50), (500, 88_000, 500), (100, 999, 99)],
)
def test_the_warm_up_is_at_most_a_tenth_of_the_run(warmup_steps: int, num_steps: int, expected: int):
    settings = TrainSettings(epochs=1, warmup_steps=warmup_steps)
    assert Schedule(settings, steps_per_epoch=num_steps, images_per_step=1).warmup_steps == expected


@pytest.fixture
def model() -> nn.Module:
    """Return a model with a backbone and a partly frozen head."""
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model.head = nn.Conv2d(4, 2, 1)
    model.head.weight.requires_grad_(False)
    return model


def test_norms_and_biases_do_not_decay_and_frozen_parameters_have_no_group(model: nn.Module):
    decayed, plain = parameter_groups(model, TrainSettings(weight_decay=0.01))
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0)
    conv, norm = model.backbone
    assert {id(p) for p in decayed["params"]} == {id(conv.weight)}
    expected = (conv.bias, norm.weight, norm.bias, model.head.bias)
    assert {id(p) for p in plain["params"]} == {id(p) for p in expected}


def test_norms_and_biases_can_decay(model: nn.Module):
    groups = parameter_groups(model, TrainSettings(weight_decay=0.01, decay_norms_and_biases=True))
    assert [group["weight_decay"] for group in groups] == [0.01, 0.01]


def test_the_backbone_can_have_a_different_learning_rate(model: nn.Module):
    model.head.weight.requires_grad_(True)
    groups = parameter_groups(model, TrainSettings(weight_decay=0.01, backbone_lr_scale=0.1))
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert scales == {id(p): 0.1 for p in model.backbone.parameters()} | {id(p): 1 for p in model.head.parameters()}
    assert decays == {id(p): 0.01 if p.ndim > 1 else 0 for p in model.parameters()}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_with_a_zero_gradient_only_decays_the_weights(model: nn.Module, name: str):
    optimizer = make_optimizer(model, TrainSettings(optimizer=name, lr=0.5, weight_decay=0.1))
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for key, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[key] * (0.95 if key == "backbone.0.weight" else 1))


def test_sgd_has_momentum(model: nn.Module):
    optimizer = make_optimizer(model, TrainSettings(lr=0.5, weight_decay=0.0))
    bias = model.backbone[0].bias
    before = bias.detach().clone()
    for _ in range(2):
        bias.grad = torch.ones(4)
        optimizer.step()
    torch.testing.assert_close(bias.detach(), before - 0.5 * (1 + 1.9))
