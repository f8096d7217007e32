"""GHM-C and GHM-R compared with the published procedure over 50 steps, and the rules in which they differ."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from ghm_parity import RULES, drawn, trained
from losses_reference import clear_of_edges
from published_ghm import (
    OURS,
    OURS_BY_LEVEL,
    PUBLISHED,
    Harmonized,
    PublishedGHMC,
    PublishedGHMR,
    Rules,
    Step,
    drawn_steps,
    one_hot,
)

from detector.losses import BOX_LOSSES, CLASSIFICATION_LOSSES

NUM_STEPS = 50
SIZES = (192, 48, 12, 3)
# The running counts are fp32 also for float64 input. 1 - m^t loses a digit in the first steps.
RTOL = {torch.float64: 2e-6, torch.float32: 2e-5}
ATOL = {torch.float64: 1e-12, torch.float32: 1e-7}


@cache
def steps(dtype=torch.float64):
    """Return the same steps in a dtype. No norm is so near an edge that rounding to fp32 changes the bin."""
    result = []
    for step in drawn_steps(NUM_STEPS, level_sizes=SIZES):
        logits, predicted, target = (x.to(dtype) for x in (step.logits, step.predicted, step.target))
        logits = logits.where(clear_of_edges(logits.double().sigmoid()), 1.0)
        difference = predicted.double() - target.double()
        is_clear = clear_of_edges(difference.abs() / (difference**2 + 0.02**2).sqrt())
        predicted = predicted.where(is_clear, target)
        result.append(replace(step, logits=logits, predicted=predicted, target=target))
    return result


def our_classification(loss, step: Step) -> Harmonized:
    """Return the result of our loss. The factor of an element is gradient / (p - t)."""
    logits = step.logits.clone().requires_grad_()
    value = loss(logits, step.labels, 1, level_sizes=step.level_sizes)
    (gradient,) = torch.autograd.grad(value, logits)
    slopes = logits.detach().sigmoid().numpy() - one_hot(step.labels.numpy(), logits.shape[-1])
    return Harmonized(gradient.numpy() / slopes, value.item(), gradient.numpy())


def our_boxes(loss, step: Step) -> Harmonized:
    """Return the result of our loss. The factors are those of offsets with a difference."""
    predicted = step.predicted.clone().requires_grad_()
    value = loss(predicted, step.target, step.foreground, 1)
    (gradient,) = torch.autograd.grad(value, predicted)
    difference = (predicted.detach() - step.target).double()
    slopes = (difference / (difference**2 + loss.mu**2).sqrt()).where(step.foreground[..., None], 0).numpy()
    factors = np.divide(gradient.numpy(), slopes, out=np.zeros(slopes.shape), where=slopes != 0)
    return Harmonized(factors, value.item(), gradient.numpy())


def is_close(ours: Harmonized, expected: Harmonized, dtype) -> bool:
    assert np.isfinite([ours.loss, expected.loss]).all()
    scale = np.abs(expected.gradient).max()
    has_gradient = ours.factors != 0
    return bool(
        np.isclose(ours.loss, expected.loss, rtol=RTOL[dtype], atol=ATOL[dtype])
        and np.allclose(ours.gradient, expected.gradient, rtol=RTOL[dtype], atol=ATOL[dtype] * scale)
        and np.allclose(ours.factors[has_gradient], expected.factors[has_gradient], rtol=10 * RTOL[dtype], atol=0)
    )


def equal_steps_ghm_c(rules: Rules, scope: str, dtype=torch.float64, momentum: float = 0.75) -> list[bool]:
    """Return for each step whether our GHM-C equals the procedure with these rules."""
    loss = CLASSIFICATION_LOSSES.build("ghm_c", bins=30, momentum=momentum, scope=scope, power=1.0)
    expected = PublishedGHMC(bins=30, momentum=momentum, rules=rules)
    return [is_close(our_classification(loss, step), expected(*step.classification()), dtype) for step in steps(dtype)]


def equal_steps_ghm_r(rules: Rules, dtype=torch.float64, momentum: float = 0.7) -> list[bool]:
    """Return for each step whether our GHM-R equals the procedure with these rules."""
    loss = BOX_LOSSES.build("ghm_r", mu=0.02, bins=10, momentum=momentum, power=1.0)
    expected = PublishedGHMR(mu=0.02, bins=10, momentum=momentum, rules=rules)
    return [is_close(our_boxes(loss, step), expected(*step.boxes()), dtype) for step in steps(dtype)]


each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@each_dtype
def test_without_momentum_ghm_c_by_level_is_the_published_procedure(dtype):
    assert all(equal_steps_ghm_c(PUBLISHED, "level", dtype, momentum=0.0))


@each_dtype
def test_without_momentum_ghm_r_is_the_published_procedure_in_one_call(dtype):
    assert all(equal_steps_ghm_r(replace(PUBLISHED, by_level=False), dtype, momentum=0.0))
    assert not all(equal_steps_ghm_r(PUBLISHED, dtype, momentum=0.0))


@each_dtype
@pytest.mark.parametrize(("scope", "rules"), [("level", OURS_BY_LEVEL), ("batch", OURS)])
def test_ghm_c_differs_from_the_published_procedure_only_in_its_known_rules(scope, rules, dtype):
    assert all(equal_steps_ghm_c(rules, scope, dtype))


@each_dtype
def test_ghm_r_differs_from_the_published_procedure_only_in_its_known_rules(dtype):
    assert all(equal_steps_ghm_r(OURS, dtype))


def test_bias_correction_is_a_difference_of_the_first_counts_of_a_bin_only():
    """Each step has the same logits, so each bin in use has elements in each step."""
    loss, step = CLASSIFICATION_LOSSES.build("ghm_c", bins=30, momentum=0.75, power=1.0), steps()[0]
    expected = PublishedGHMC(rules=replace(OURS, corrects_bias=False))
    results = [(our_classification(loss, step), expected(*step.classification())) for _ in range(NUM_STEPS)]
    is_equal = [is_close(*pair, torch.float64) for pair in results]
    assert not any(is_equal[:40])
    # 0.75^50 is 6e-7
    assert all(is_equal[48:])


def test_the_decay_of_empty_bins_is_a_difference_from_the_first_empty_bin_with_history():
    is_equal = equal_steps_ghm_c(replace(OURS, decays_empty_bins=True), "batch")
    assert is_equal[0] and not all(is_equal)


@pytest.mark.parametrize(("scope", "rules"), [("level", OURS), ("batch", OURS_BY_LEVEL)])
def test_each_scope_is_a_difference_in_every_step(scope, rules):
    assert not any(equal_steps_ghm_c(rules, scope))


@pytest.mark.parametrize("change", [{"by_level": True}, {"corrects_bias": False}, {"decays_empty_bins": True}], ids=str)
def test_each_rule_of_ghm_r_is_a_difference(change):
    assert not all(equal_steps_ghm_r(replace(OURS, **change)))


@pytest.mark.parametrize(
    "change",
    [{"shares_counts": False}, {"averages_levels": True}, {"num_processes": 2}, {"rounds_norms": True}],
    ids=str,
)
def test_ghm_c_by_level_has_none_of_the_other_rules(change):
    assert not all(equal_steps_ghm_c(replace(OURS_BY_LEVEL, **change), "level"))


def test_the_number_of_valid_elements_cancels():
    """A copy of each image doubles the number of elements. The loss does not change."""
    published = PublishedGHMC(momentum=0.0)
    ours = CLASSIFICATION_LOSSES.build("ghm_c", momentum=0.0, scope="level", power=1.0)
    for step in steps()[::10]:
        doubled = replace(step, logits=torch.cat([step.logits] * 2), labels=torch.cat([step.labels] * 2))
        expected = published(*step.classification()).loss
        assert published(*doubled.classification()).loss == pytest.approx(expected, rel=1e-9)
        assert our_classification(ours, doubled).loss == pytest.approx(expected, rel=2e-6)


def test_only_ignored_elements_have_no_factor_in_the_procedure():
    step = steps()[0]
    result, labels = PublishedGHMC()(*step.classification()), step.labels.numpy()
    assert (result.factors[labels < 0] == 0).all() and (result.factors[labels >= 0] > 0).all()


@pytest.mark.slow
def test_the_document_has_the_table_of_random_logits_and_the_script_trains():
    document = (Path(__file__).parents[2] / "tools/benchmarks/README.md").read_text(encoding="utf-8")
    lines = drawn().tables().splitlines()
    rows = [line for line in lines if line and not line.startswith(("|  |", "| ---"))]
    assert len(rows) == len(RULES) + 7  # 3 other losses for the classes, and 4 for the boxes
    assert set(rows) <= set(document.splitlines())
    comparison = trained(["data.train.num_images=8", "data.train.image_size=64", "data.short_side=64"])
    assert comparison.num_steps == 2 and all(
        np.isfinite(row.numbers["trunk gradient"]) for row in comparison.class_rows
    )
