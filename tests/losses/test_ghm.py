"""The state and the bins of the gradient harmonized losses."""

import copy
import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from losses_reference import BOX, CLASSIFICATION, as_float64, assert_matches, draw_boxes, draw_labels, draw_logits

from detector.losses import BOX_LOSSES, CLASSIFICATION_LOSSES

BACKGROUND = 1  # with K = 1


PARAMETERS = {
    "ghm_c": {"bins": 10, "momentum": 0.75, "scope": "batch", "power": 1.0},
    "ghm_r": {"mu": 0.02, "bins": 10, "momentum": 0.7, "power": 1.0},
}


def build(name, **changed):
    return (CLASSIFICATION_LOSSES if name == "ghm_c" else BOX_LOSSES).build(name, **PARAMETERS[name] | changed)


def reference(name, **changed):
    return (CLASSIFICATION if name == "ghm_c" else BOX)[name](**PARAMETERS[name] | changed)


def draw(name, seed, dtype=torch.float32):
    """Return the arguments of a step. The spread of the gradient norms depends on the seed."""
    if name == "ghm_c":
        logits = draw_logits((2, 13, 5), dtype, seed)
        return logits.requires_grad_(), draw_labels((2, 13), 5, seed), 3
    predicted, target, foreground = draw_boxes((2, 13, 4), dtype, seed)
    return predicted.requires_grad_(), target, foreground, 3


def ignore_all(arguments):
    first, *middle, num_fg = arguments
    return first, *middle[:-1], torch.full_like(middle[-1], -1 if len(middle) == 1 else False), num_fg


def backgrounds(norms, dtype=torch.float32):
    """Return background logits with K = 1 and the given gradient norms g = p, and their labels."""
    g = torch.tensor(norms, dtype=torch.float64)
    return torch.log(g / (1 - g)).to(dtype)[:, None].requires_grad_(), torch.full((len(norms),), BACKGROUND)


def snapshot(loss):
    return copy.deepcopy(loss.state_dict())


def same_state(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


each_ghm = pytest.mark.parametrize("name", ["ghm_c", "ghm_r"])


@each_ghm
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("bins", [1, 10, 30])
def test_many_steps_follow_the_running_counts(name, momentum, bins):
    loss, expected = build(name, momentum=momentum, bins=bins), reference(name, momentum=momentum, bins=bins)
    for step in range(12):
        arguments = draw(name, seed=step)
        assert_matches(loss(*arguments), arguments[0], expected(*arguments), upstream=3.7)


@pytest.mark.parametrize("scope", ["batch", "level"])
@pytest.mark.parametrize("power", [0.0, 0.5, 0.9])
def test_a_power_of_the_density(power, scope):
    loss, expected = (make("ghm_c", power=power, scope=scope) for make in (build, reference))
    for step in range(6):
        logits, labels, num_fg = draw("ghm_c", seed=step)
        value = loss(logits, labels, num_fg, level_sizes=(9, 4))
        assert_matches(value, logits, expected(logits, labels, num_fg, (9, 4)), upstream=3.7)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_a_power_of_the_density_of_box_offsets(power):
    loss, expected = (make("ghm_r", power=power) for make in (build, reference))
    for step in range(6):
        arguments = draw("ghm_r", seed=step)
        assert_matches(loss(*arguments), arguments[0], expected(*arguments), upstream=3.7)


@each_ghm
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_running_counts_in_other_precisions(name, dtype):
    loss, expected = build(name), reference(name)
    for step in range(5):
        arguments = draw(name, seed=step, dtype=dtype)
        assert_matches(loss(*arguments), arguments[0], expected(*arguments), fp32_counts=True)


@each_ghm
def test_a_step_without_valid_elements_changes_no_count(name):
    loss, expected = build(name), reference(name)
    for seed, ignored in [(0, False), (1, True), (2, False), (3, True), (4, True), (5, False)]:
        arguments = draw(name, seed)
        arguments = ignore_all(arguments) if ignored else arguments
        value = loss(*arguments)
        assert_matches(value, arguments[0], expected(*arguments))
        assert (value == 0) == ignored


@each_ghm
def test_bias_correction_makes_constant_input_weigh_as_without_momentum(name):
    arguments = draw(name, seed=6)
    plain = build(name, momentum=0.0)(*arguments)
    (wanted,) = torch.autograd.grad(plain, arguments[0])
    loss = build(name, momentum=0.9)
    for _ in range(5):
        value = loss(*arguments)
        (gradient,) = torch.autograd.grad(value, arguments[0])
        # 1 - 0.9^t in fp32 loses a digit to cancellation at t = 1
        torch.testing.assert_close(value, plain, rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("changed", [{"bins": 1}, {"power": 0.0}], ids=str)
def test_one_bin_and_power_0_are_mean_cross_entropy(changed):
    logits, labels, num_fg = draw("ghm_c", seed=7)
    valid = labels >= 0
    targets = F.one_hot(labels[valid], 6)[:, :5].float()
    mean = F.binary_cross_entropy_with_logits(logits[valid], targets)
    loss = build("ghm_c", momentum=0.0, **changed)(logits, labels, num_fg)
    torch.testing.assert_close(loss, mean, rtol=1e-6, atol=0)
    (got,), (wanted,) = torch.autograd.grad(loss, logits), torch.autograd.grad(mean, logits)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-9)


def test_worked_example_of_the_classification_loss():
    """Two bins have three elements and one element. The loss is the sum of CE / R_j, divided by M = 2 bins."""
    logits, labels = backgrounds([0.1, 0.2, 0.3, 0.9])
    wanted = -(math.log(0.9) + math.log(0.8) + math.log(0.7)) / 3 / 2 - math.log(0.1) / 1 / 2
    assert build("ghm_c", bins=2, momentum=0.0)(logits, labels, 1).item() == pytest.approx(wanted, rel=1e-6)


def test_worked_example_counts_only_the_bins_in_use():
    """Two of ten bins have elements, so M is 2. An ignored row does not count in N and R_j."""
    logits, labels = backgrounds([0.12, 0.15, 0.18, 0.95, 0.55])
    labels[4] = -1
    wanted = -(math.log(0.88) + math.log(0.85) + math.log(0.82)) / 3 / 2 - math.log(0.05) / 1 / 2
    assert build("ghm_c", bins=10, momentum=0.0)(logits, labels, 1).item() == pytest.approx(wanted, rel=1e-6)


def test_worked_example_of_two_steps_with_momentum():
    """The momentum is 0.5, and the counts are (3, 1), then (1, 1): S = (1.25, 0.75) / (1 - 0.25) = (5/3, 1)."""
    loss = build("ghm_c", bins=2, momentum=0.5)
    loss(*backgrounds([0.1, 0.2, 0.3, 0.9]), 1)
    second = loss(*backgrounds([0.2, 0.6]), 1)
    assert second.item() == pytest.approx(-math.log(0.8) / (5 / 3) / 2 - math.log(0.4) / 1 / 2, rel=1e-6)


def test_worked_example_of_an_empty_bin_that_keeps_its_count():
    """The momentum is 0.5, and the counts are (1, 1), (4, 0), (1, 3): the means are 13/7 and 7/3."""
    loss = build("ghm_c", bins=2, momentum=0.5)
    loss(*backgrounds([0.2, 0.6]), 1)
    loss(*backgrounds([0.2, 0.3, 0.3, 0.3]), 1)
    third = loss(*backgrounds([0.2, 0.6, 0.6, 0.6]), 1)
    means = (0.125 + 1 + 0.5) / 0.875, (0.25 + 1.5) / 0.75
    assert third.item() == pytest.approx(-math.log(0.8) / means[0] / 2 - 3 * math.log(0.4) / means[1] / 2, rel=1e-6)


def test_worked_example_of_the_box_loss():
    """With mu = 3, d = 0, 4, 4, -4 have sqrt(d^2 + mu^2) = 3, 5, 5, 5. ASL1 is 0, 2, 2, 2, and g is 0 or 0.8."""
    predicted = torch.tensor([[0.0, 4.0, 4.0, -4.0]], requires_grad=True)
    loss = build("ghm_r", mu=3.0, bins=2, momentum=0.0)(predicted, torch.zeros(1, 4), torch.tensor([True]), 1)
    assert loss.item() == pytest.approx(0 / 1 / 2 + (2 + 2 + 2) / 3 / 2, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, predicted)
    np.testing.assert_allclose(gradient[0], [0, 0.8 / 6, 0.8 / 6, -0.8 / 6], rtol=1e-6)


def test_an_element_on_an_edge_belongs_to_the_bin_above():
    """The logit 0 has exactly g = 0.5. With two bins it is in the bin of g = 0.9."""
    logits, labels = backgrounds([0.1, 0.5, 0.9])
    wanted = -math.log(0.9) / 1 / 2 - (math.log(0.5) + math.log(0.1)) / 2 / 2
    assert build("ghm_c", bins=2, momentum=0.0)(logits, labels, 1).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bins", [1, 10, 30])
def test_the_worst_negatives_keep_their_gradient(dtype, bins):
    """At logit 20 the fp32 sigmoid is 1, so g = 1 is on the last edge. At logit 8, bf16 would round g to 1."""
    logits = torch.tensor([[20.0], [8.0], [-20.0], [-8.0], [-6.0]], dtype=dtype, requires_grad=True)
    labels = torch.full((5,), BACKGROUND)
    loss = build("ghm_c", bins=bins)(logits, labels, 0)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    assert (gradient[:2] > 0.05).all()
    assert_matches(loss, logits, reference("ghm_c", bins=bins)(logits, labels, 0), fp32_counts=True)


@each_ghm
def test_every_bin_in_use_gets_the_same_total_weight(name):
    """Without momentum, the elements of a bin have the total weight 1 / M. A copy of an element has no effect."""
    if name == "ghm_c":
        few, many = backgrounds([0.12, 0.95]), backgrounds([0.12] * 50 + [0.95])
    else:
        row, easy = torch.tensor([[0.001, 0.001, 1.0, 1.0]]), torch.full((9, 4), 0.001)
        few, many = (
            (d, torch.zeros_like(d), torch.ones(len(d), dtype=torch.bool)) for d in (row, torch.cat([row, easy]))
        )
    loss = build(name, momentum=0.0)
    torch.testing.assert_close(loss(*few, 1), loss(*many, 1), rtol=1e-5, atol=0)


@each_ghm
def test_num_fg_is_not_used(name):
    *arguments, _ = draw(name, seed=8)
    assert torch.equal(build(name)(*arguments, 1), build(name)(*arguments, 1000))


@each_ghm
def test_training_updates_the_buffers_and_evaluation_does_not(name):
    loss = build(name)
    fresh = snapshot(loss)
    assert fresh, "the running counts must be in the state_dict"
    loss.eval()
    loss(*draw(name, seed=9))
    assert same_state(snapshot(loss), fresh)
    loss.train()
    loss(*draw(name, seed=9))
    trained = snapshot(loss)
    assert not same_state(trained, fresh)
    loss.eval()
    with torch.no_grad():
        loss(*draw(name, seed=10))
    assert same_state(snapshot(loss), trained)


@each_ghm
def test_evaluation_without_history_uses_the_batch_itself(name):
    arguments = draw(name, seed=11)
    expected = reference(name, momentum=0.0)
    loss = build(name).eval()
    for _ in range(2):
        assert_matches(loss(*arguments), arguments[0], expected(*arguments))


@each_ghm
def test_evaluation_after_constant_training_gives_the_training_loss(name):
    arguments = draw(name, seed=12)
    loss = build(name)
    for _ in range(3):
        trained = loss(*arguments)
    torch.testing.assert_close(loss.eval()(*arguments), trained, rtol=1e-5, atol=0)


@each_ghm
def test_evaluation_is_finite_in_bins_without_training_elements(name):
    loss = build(name)
    if name == "ghm_c":
        trained, untrained = backgrounds([0.12, 0.15]), backgrounds([0.95, 0.55])
    else:
        near, far = torch.full((2, 4), 0.001), torch.full((2, 4), 1.0, requires_grad=True)
        trained, untrained = ((d, torch.zeros(2, 4), torch.ones(2, dtype=torch.bool)) for d in (near, far))
    loss(*trained, 1)
    value = loss.eval()(*untrained, 1)
    (gradient,) = torch.autograd.grad(value, untrained[0])
    assert value.isfinite() and value > 0
    assert gradient.isfinite().all() and (gradient > 0).all()


@each_ghm
def test_evaluation_between_steps_does_not_change_training(name):
    undisturbed, disturbed = build(name), build(name)
    for step in range(4):
        arguments = draw(name, seed=step)
        assert torch.equal(undisturbed(*arguments), disturbed(*arguments))
        disturbed.eval()
        disturbed(*draw(name, seed=100 + step))
        disturbed.train()


@each_ghm
def test_state_dict_round_trip_is_bit_exact(name):
    loss = build(name)
    for step in range(3):
        loss(*draw(name, seed=step))
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    restored = build(name)
    restored.load_state_dict(torch.load(file))
    assert same_state(restored.state_dict(), loss.state_dict())
    for step in range(3, 6):
        arguments = draw(name, seed=step)
        values = [each(*arguments) for each in (loss, restored)]
        gradients = [torch.autograd.grad(value, arguments[0])[0] for value in values]
        assert torch.equal(*values) and torch.equal(*gradients)
    fresh = build(name)
    assert not torch.equal(fresh(*draw(name, seed=6)), loss(*draw(name, seed=6)))


LEVELS = (8, 0, 4, 1)


@pytest.mark.parametrize("momentum", [0.0, 0.75])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_level_scope_updates_one_shared_count_level_after_level(momentum, dtype):
    loss = build("ghm_c", momentum=momentum, scope="level")
    expected = reference("ghm_c", momentum=momentum, scope="level")
    for step in range(6):
        logits, labels, num_fg = draw("ghm_c", seed=step, dtype=dtype)
        labels[:, 8:12] = -1 if step == 3 else labels[:, 8:12]  # a level without valid elements
        value = loss(logits, labels, num_fg, level_sizes=LEVELS)
        assert_matches(value, logits, expected(logits, labels, num_fg, LEVELS), upstream=3.7)


def test_level_scope_depends_on_the_levels():
    logits, labels, num_fg = draw("ghm_c", seed=13)
    by_level = build("ghm_c", scope="level")(logits, labels, num_fg, level_sizes=(8, 4, 1))
    assert not torch.isclose(by_level, build("ghm_c")(logits, labels, num_fg))


def test_level_scope_of_a_single_level_is_batch_scope():
    batch, level = build("ghm_c"), build("ghm_c", scope="level")
    for step in range(3):
        arguments = draw("ghm_c", seed=step)
        torch.testing.assert_close(level(*arguments, level_sizes=(13,)), batch(*arguments), rtol=1e-6, atol=0)


def test_split_by_level():
    logits, labels, num_fg = draw("ghm_c", seed=14)
    parts = build("ghm_c", scope="level").split(logits, labels, num_fg, level_sizes=LEVELS)
    expected = reference("ghm_c", scope="level")(logits, labels, num_fg, LEVELS)
    np.testing.assert_allclose(as_float64(parts), expected.parts, rtol=1e-5)


def test_level_scope_evaluation_does_not_change_buffers():
    loss = build("ghm_c", scope="level")
    loss(*draw("ghm_c", seed=15), level_sizes=LEVELS)
    trained = snapshot(loss)
    assert loss.eval()(*draw("ghm_c", seed=16), level_sizes=LEVELS).isfinite()
    assert same_state(snapshot(loss), trained)
