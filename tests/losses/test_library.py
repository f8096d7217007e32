"""Every loss and every option against its reference. Losses with a state take only their first step here."""

import math

import numpy as np
import pytest
import torch
from library_reference import LIBRARY, assert_agrees, draw_inputs
from losses_reference import VALUE_ATOL, VALUE_RTOL, as_float64
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from detector.losses import CLASSIFICATION_LOSSES

# `fitted` cuts the lists to the number of classes of a test
ALPHAS, WEIGHTS, COUNTS = [0.25, 0.5, 0.9, 0.1, 0.6], [2.0, 0.5, 1.0, 3.0, 0.25], [100, 7, 0, 3000, 25]
BY_FREQUENCY = {"class_weights": "inverse_frequency", "class_counts": COUNTS}
BY_NUMBER = {"class_weights": "effective_number", "class_counts": COUNTS}
RESCALED = [
    ("focal", {"rescale": True}),
    ("focal", {"rescale": True, "alpha": ALPHAS, "gamma": 0.5, **BY_NUMBER, "beta": 0.99}),
]
CASES = [
    ("cross_entropy", {"alpha": ALPHAS}),
    ("cross_entropy", {"class_weights": WEIGHTS}),
    ("cross_entropy", {"alpha": 0.3, **BY_FREQUENCY}),
    ("cross_entropy", {**BY_NUMBER}),
    ("focal", {"alpha": ALPHAS, "gamma": 1.5}),
    ("focal", {"alpha": None, "class_weights": WEIGHTS}),
    ("focal", {**BY_NUMBER, "beta": 0.99}),
    *RESCALED,
    ("margin_cross_entropy", {}),
    ("margin_cross_entropy", {"margin": 0.3, "alpha": 0.3}),
    ("ohem", {}),
    ("ohem", {"ratio": 1.5, "alpha": 0.25, "gamma": 2.0}),
    ("ohem", {"mode": "top_k", "top_k": 2}),
    ("ohem", {"mode": "top_k", "top_k": 4, "alpha": 0.25, "gamma": 2.0}),
    ("quality_focal", {}),
    ("quality_focal", {"beta": 1.5}),
    ("varifocal", {}),
    ("varifocal", {"alpha": 0.6, "gamma": 1.5}),
    ("mal", {}),
    ("mal", {"gamma": 0.7}),
    ("asymmetric", {}),
    ("asymmetric", {"gamma_pos": 1.0, "gamma_neg": 0.5, "shift": 0.2}),
    ("asymmetric", {"gamma_pos": 2.0, "gamma_neg": 1.0, "shift": 0.0}),
    ("asymmetric", {"gamma_neg": 0.0}),
    ("poly_focal", {}),
    ("poly_focal", {"alpha": None, "gamma": 1.5, "epsilon": 2.0}),
    ("equalized_focal", {}),
    ("equalized_focal", {"alpha": None, "gamma": 1.5, "scale": 4.0}),
    ("rank_sort", {}),
    ("rank_sort", {"delta": 2.0}),
]
DEFAULTS = {
    "cross_entropy": {"alpha": None, "class_weights": None, "class_counts": None, "beta": 0.9999},
    "focal": {"alpha": 0.25, "gamma": 2.0, "rescale": False, "class_weights": None, "class_counts": None},
    "margin_cross_entropy": {"margin": 0.6, "alpha": None},
    "ohem": {"mode": "ratio", "ratio": 3.0, "top_k": 256, "alpha": None, "gamma": 0.0},
    "quality_focal": {"beta": 2.0},
    "varifocal": {"alpha": 0.75, "gamma": 2.0},
    "mal": {"gamma": 1.5},
    "asymmetric": {"gamma_pos": 0.0, "gamma_neg": 4.0, "shift": 0.05},
    "poly_focal": {"alpha": 0.25, "gamma": 2.0, "epsilon": -1.0},
    "equalized_focal": {"alpha": 0.25, "gamma": 2.0, "scale": 8.0},
    "rank_sort": {"delta": 0.5},
}
# the gradient of a rescaled loss takes its factor as constant, and that of rank_sort is an identity update
DIFFERENTIABLE = [case for case in CASES if case not in RESCALED and case[0] != "rank_sort"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (7, 3), (0, 4), (9, 1), (3, 0, 2), (2, 2, 6, 3)]


def over(cases):
    ids = [f"{name}-{','.join(f'{k}={v}' for k, v in parameters.items())}" for name, parameters in cases]
    return pytest.mark.parametrize(("name", "parameters"), cases, ids=ids)


def fitted(name, parameters, num_classes):
    parameters = {k: v[:num_classes] if isinstance(v, list) else v for k, v in parameters.items()}
    return parameters | {"num_classes": num_classes} if name == "equalized_focal" else parameters


def build(name, parameters, num_classes):
    return CLASSIFICATION_LOSSES.build(name, **fitted(name, parameters, num_classes))


def check(name, parameters, logits, labels, num_fg, quality=None):
    """Compare value, gradient and split of a new loss with a new reference."""
    num_classes, dtype = logits.shape[-1], logits.dtype
    logits.requires_grad_()
    expected = LIBRARY[name](**fitted(name, parameters, num_classes))(logits, labels, num_fg, quality)
    assert_agrees(build(name, parameters, num_classes)(logits, labels, num_fg, quality=quality), logits, expected)
    parts = build(name, parameters, num_classes).split(logits, labels, num_fg, quality=quality)
    assert parts.shape == (2,)
    np.testing.assert_allclose(as_float64(parts), expected.parts, VALUE_RTOL[dtype], VALUE_ATOL[dtype])


def value_and_gradient(loss, logits, labels, num_fg, **options):
    value = loss(logits, labels, num_fg, **options)
    return value, *torch.autograd.grad(value, logits)


@pytest.mark.parametrize("name", LIBRARY)
def test_defaults(name):
    logits, labels, quality = draw_inputs((2, 13, 5), torch.float32, seed=1)
    plain, explicit = build(name, {}, 5), build(name, DEFAULTS[name], 5)
    assert torch.equal(plain(logits, labels, 3, quality=quality), explicit(logits, labels, 3, quality=quality))


@over(CASES)
@pytest.mark.parametrize(
    ("dtype", "shape"), [(d, (2, 13, 5)) for d in DTYPES] + [(torch.float32, s) for s in SHAPES], ids=str
)
def test_matches_the_formula(name, parameters, dtype, shape):
    logits, labels, quality = draw_inputs(shape, dtype, seed=2)
    check(name, parameters, logits, labels, 3, quality)


@over(CASES)
def test_quality_none_is_one(name, parameters):
    logits, labels, _ = draw_inputs((7, 3), torch.float32, seed=3)
    check(name, parameters, logits, labels, 3, quality=None)


@over(CASES)
def test_quality_may_be_zero_and_may_be_nan_outside_the_foreground(name, parameters):
    logits, labels, quality = draw_inputs((2, 13, 3), torch.float32, seed=4)
    labels[0, 0], quality[0, 0] = 1, 0
    expected = LIBRARY[name](**fitted(name, parameters, 3))(logits, labels, 3, quality)
    quality = quality.where((labels >= 0) & (labels < 3), math.nan)
    assert_agrees(build(name, parameters, 3)(logits.requires_grad_(), labels, 3, quality=quality), logits, expected)


@over(CASES)
def test_strided_views(name, parameters):
    head_output = draw_inputs((2, 3, 5, 8), torch.float32, seed=5)[0]  # (B, K, H, W)
    logits = head_output.permute(0, 2, 3, 1)[:, 1:, ::2]  # (B, H - 1, W / 2, K)
    _, labels, quality = draw_inputs((2, 4, 4, 3), torch.float32, seed=5)
    labels, quality = labels.transpose(1, 2), quality.transpose(1, 2)
    assert not logits.is_contiguous() and not labels.is_contiguous()
    check(name, parameters, logits, labels, 7, quality)


@over(DIFFERENTIABLE)
def test_gradcheck(name, parameters):
    logits, _, quality = draw_inputs((6, 3), torch.float64, seed=6)
    labels = torch.tensor([0, 1, 2, 3, 3, -1])
    loss = build(name, parameters, 3).eval()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, 2, quality=quality), logits.clamp(-6, 6).requires_grad_())


@over(CASES)
def test_num_fg_is_a_number_or_a_tensor_clamped_at_one(name, parameters):
    for num_fg in (0, 0.5, 40, torch.tensor(0), torch.tensor(4.5)):
        logits, labels, quality = draw_inputs((7, 3), torch.float32, seed=7)
        check(name, parameters, logits, labels, num_fg, quality)


@over(CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_saturated_logits_stay_finite_and_exact(name, parameters, dtype):
    logits = torch.tensor([[100, -100], [-100, 100], [100, 100], [-100, -100]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([0, 0, 2, 2])  # right, wrong, wrong, right
    for quality in (None, torch.tensor([0.25, 0.75, 0.5, 0.5])):
        check(name, parameters, logits, labels, 2, quality)
        _, gradient = value_and_gradient(build(name, parameters, 2), logits, labels, 2, quality=quality)
        assert gradient.isfinite().all()


@over(CASES)
def test_no_foreground(name, parameters):
    logits, labels, quality = draw_inputs((2, 9, 4), torch.float32, seed=8)
    labels = torch.where(labels < 0, -1, 4)
    check(name, parameters, logits, labels, 0, quality)
    assert build(name, parameters, 4).split(logits, labels, 0)[0] == 0


@over(CASES)
def test_all_ignored(name, parameters):
    logits, _, quality = draw_inputs((2, 9, 4), torch.float32, seed=9)
    labels = torch.full((2, 9), -1)
    loss, gradient = value_and_gradient(build(name, parameters, 4), logits.requires_grad_(), labels, 0, quality=quality)
    assert loss == 0 and (gradient == 0).all()
    assert build(name, parameters, 4).split(logits, labels, 0, quality=quality).tolist() == [0, 0]


@over(CASES)
def test_ignored_rows_may_hold_any_value(name, parameters):
    logits, _, quality = draw_inputs((5, 3), torch.float32, seed=10)
    labels = torch.tensor([0, 3, 1, -1, -1])
    expected = LIBRARY[name](**fitted(name, parameters, 3))(logits, labels, 2, quality)
    logits[3:] = torch.tensor([[200.0, -200.0, 1e30], [0.0, -1e30, 3.0]])
    assert_agrees(build(name, parameters, 3)(logits.requires_grad_(), labels, 2, quality=quality), logits, expected)


@over(CASES)
def test_another_call_does_not_change_a_backward_pass(name, parameters):
    logits, labels, quality = draw_inputs((7, 3), torch.float32, seed=11)
    before = logits.clone()
    expected = LIBRARY[name](**fitted(name, parameters, 3))(logits, labels, 3, quality)
    loss = build(name, parameters, 3)
    with torch.no_grad():
        no_graph = loss.eval()(logits.requires_grad_(), labels, 3, quality=quality)
    assert not no_graph.requires_grad
    first, _ = loss(logits, labels, 3, quality=quality), loss(-logits, labels, 3, quality=quality)
    torch.testing.assert_close(first.detach(), no_graph, rtol=1e-6, atol=0)
    first.backward(retain_graph=True)
    first.backward()
    np.testing.assert_allclose(as_float64(logits.grad), 2 * expected.gradient, rtol=1e-5, atol=2e-6)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("name", LIBRARY)
def test_level_sizes_are_accepted_and_change_nothing(name):
    logits, labels, quality = draw_inputs((2, 13, 5), torch.float32, seed=12)
    plain = build(name, {}, 5)(logits, labels, 3, quality=quality)
    assert torch.equal(build(name, {}, 5)(logits, labels, 3, level_sizes=(8, 4, 1), quality=quality), plain)


EQUAL_COUNTS = {"class_counts": [40] * 5}
IDENTITIES = [
    (("margin_cross_entropy", {"margin": 1.0, "alpha": 0.3}), ("cross_entropy", {"alpha": 0.3})),
    (("poly_focal", {"epsilon": 0.0}), ("focal", {})),
    (("poly_focal", {"alpha": None, "gamma": 0.0, "epsilon": 0.0}), ("cross_entropy", {})),
    (("asymmetric", {"gamma_pos": 0.0, "gamma_neg": 0.0, "shift": 0.0}), ("cross_entropy", {})),
    (("asymmetric", {"gamma_pos": 2.0, "gamma_neg": 2.0, "shift": 0.0}), ("focal", {"alpha": None})),
    (("quality_focal", {"beta": 1.5}), ("focal", {"alpha": None, "gamma": 1.5})),
    (("quality_focal", {"beta": 0.0}), ("cross_entropy", {})),
    (("ohem", {"ratio": 1e6}), ("cross_entropy", {})),
    (("ohem", {"ratio": 1e6, "alpha": 0.25, "gamma": 2.0}), ("focal", {})),
    (("ohem", {"mode": "top_k"}), ("cross_entropy", {})),
    (("equalized_focal", {}), ("focal", {})),
    (("equalized_focal", {"alpha": 0.4, "gamma": 1.5}), ("focal", {"alpha": 0.4, "gamma": 1.5})),
    (("cross_entropy", {"alpha": [0.3] * 5}), ("cross_entropy", {"alpha": 0.3})),
    (("cross_entropy", {"class_weights": [1.0] * 5}), ("cross_entropy", {})),
    (("cross_entropy", {"class_weights": "inverse_frequency", **EQUAL_COUNTS}), ("cross_entropy", {})),
    (("cross_entropy", {"class_weights": "effective_number", **EQUAL_COUNTS}), ("cross_entropy", {})),
    (("focal", {"class_weights": "effective_number", **EQUAL_COUNTS}), ("focal", {})),
    (("focal", {"alpha": ALPHAS, "gamma": 0.0, **BY_NUMBER}), ("cross_entropy", {"alpha": ALPHAS, **BY_NUMBER})),
    (("focal", {"rescale": True, "gamma": 0.0}), ("cross_entropy", {"alpha": 0.25})),
]


@pytest.mark.parametrize(
    ("first", "second"), IDENTITIES, ids=[f"{a[0]}-{a[1]}-is-{b[0]}-{b[1]}".replace(" ", "") for a, b in IDENTITIES]
)
def test_identities(first, second):
    logits, labels, _ = draw_inputs((2, 13, 5), torch.float64, seed=13)
    labels[:, 0] = torch.tensor([1, 4])  # each image has foreground
    ours, theirs = (value_and_gradient(build(*loss, 5), logits.requires_grad_(), labels, 4) for loss in (first, second))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_effective_number_tends_to_the_count():
    logits, labels, _ = draw_inputs((2, 13, 5), torch.float64, seed=13)
    by_number = build("focal", {**BY_NUMBER, "beta": 1 - 1e-9}, 5)(logits, labels, 4)
    torch.testing.assert_close(by_number, build("focal", BY_FREQUENCY, 5)(logits, labels, 4), rtol=1e-5, atol=0)


@over(RESCALED)
def test_rescaled_focal_has_the_value_of_cross_entropy_and_the_direction_of_focal(name, parameters):
    logits, labels, _ = draw_inputs((2, 13, 5), torch.float64, seed=14)
    plain = {k: v for k, v in parameters.items() if k != "rescale"}
    logits.requires_grad_()
    value, gradient = value_and_gradient(build(name, parameters, 5), logits, labels, 4)
    focal, direction = value_and_gradient(build(name, plain, 5), logits, labels, 4)
    cross_entropy = build(name, plain | {"gamma": 0.0}, 5)(logits, labels, 4)
    torch.testing.assert_close(value, cross_entropy, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, direction * (cross_entropy / focal).detach(), rtol=1e-10, atol=1e-14)


def test_varifocal_with_quality_one_is_cross_entropy_on_the_foreground_and_focal_on_the_background():
    logits, labels, _ = draw_inputs((2, 13, 5), torch.float64, seed=15)
    ours = build("varifocal", {}, 5).split(logits, labels, 4)
    foreground = build("cross_entropy", {}, 5).split(logits, labels, 4)[0]
    background = build("focal", {"alpha": 1 - 0.75}, 5).split(logits, labels, 4)[1]
    torch.testing.assert_close(ours, torch.stack([foreground, background]), rtol=1e-10, atol=0)


def test_ohem_by_ratio_ignores_an_image_without_foreground():
    logits, labels, _ = draw_inputs((2, 13, 5), torch.float64, seed=16)
    labels[0], labels[1, 0] = 5, 0
    both = build("ohem", {}, 5)(logits, labels, 1)
    torch.testing.assert_close(both, build("ohem", {}, 5)(logits[1:], labels[1:], 1), rtol=1e-12, atol=0)
    _, gradient = value_and_gradient(build("ohem", {}, 5), logits.requires_grad_(), labels, 1)
    assert (gradient[0] == 0).all() and (gradient[1] != 0).any()


def test_ohem_chooses_background_rows_by_hand():
    logits = torch.tensor([[0.0], [3.0], [1.0], [-2.0], [2.0], [9.0]])
    labels = torch.tensor([0, 1, 1, 1, 1, -1])
    cross_entropies = lambda xs: sum(math.log1p(math.exp(x)) for x in xs)  # noqa: E731
    loss = build("ohem", {"ratio": 2.9}, 1)(logits, labels, 1)
    assert loss.item() == pytest.approx(cross_entropies([0, 3, 2]), rel=1e-6)
    loss = build("ohem", {"mode": "top_k", "top_k": 3}, 1)(logits, labels, 1)
    assert loss.item() == pytest.approx(cross_entropies([3, 2, 1]), rel=1e-6)


LN2 = math.log(2)
BY_HAND = [  # values for a row of logits 0, so p = p_t = 1/2; the quality is 3/4
    ("quality_focal", {}, 1, 0, LN2 / 16),
    ("quality_focal", {}, 1, 1, LN2 / 4),
    ("varifocal", {}, 1, 0, 0.75 * LN2),
    ("varifocal", {}, 1, 1, 0.75 * LN2 / 4),
    ("mal", {"gamma": 1.0}, 1, 0, LN2),
    ("mal", {}, 1, 1, 0.5**1.5 * LN2),
    ("asymmetric", {"gamma_pos": 1.0}, 1, 0, LN2 / 2),
    ("asymmetric", {}, 1, 1, -(0.45**4) * math.log(0.55)),
    ("poly_focal", {}, 1, 0, (LN2 - 0.5) / 16),
    ("poly_focal", {}, 1, 1, 3 * (LN2 - 0.5) / 16),
    ("margin_cross_entropy", {"margin": 0.51}, 1, 0, LN2),
    ("margin_cross_entropy", {"margin": 0.49}, 1, 1, 0.0),
    ("cross_entropy", {"alpha": [0.2, 0.9]}, 2, 0, (0.2 + 0.1) * LN2),
    ("cross_entropy", {"alpha": [0.2, 0.9]}, 2, 2, (0.8 + 0.1) * LN2),
    ("cross_entropy", {"class_weights": [3.0, 5.0]}, 2, 1, 10 * LN2),
    ("cross_entropy", {"class_weights": [3.0, 5.0]}, 2, 2, 2 * LN2),
    # 1 and 1/3 scaled to mean 1 are 3/2 and 1/2; a count of 0 is replaced by 1
    ("cross_entropy", {"class_weights": "inverse_frequency", "class_counts": [0, 3]}, 2, 0, 6 * LN2),
    ("cross_entropy", {"class_weights": "inverse_frequency", "class_counts": [1, 3]}, 2, 1, LN2),
    # 0.5 / 0.5 and 0.5 / 0.75 scaled to mean 1 are 1.2 and 0.8
    ("cross_entropy", {"class_weights": "effective_number", "class_counts": [1, 2], "beta": 0.5}, 2, 0, 2.4 * LN2),
    ("focal", {"class_weights": "effective_number", "class_counts": [0, 2], "beta": 0.5}, 2, 1, 0.25 * LN2),
]


@pytest.mark.parametrize(("name", "parameters", "num_classes", "label", "value"), BY_HAND)
def test_values_by_hand(name, parameters, num_classes, label, value):
    loss = build(name, parameters, num_classes)
    got = loss(torch.zeros(1, num_classes), torch.tensor([label]), 1, quality=torch.tensor([0.75]))
    assert got.item() == pytest.approx(value, rel=1e-6)


def test_weighted_focal_equals_torchvision():
    logits, labels, _ = draw_inputs((2, 13, 5), torch.float64, seed=17)
    logits, valid = logits.requires_grad_(), labels >= 0
    target = (labels[valid][:, None] == torch.arange(5)).double()
    alpha = torch.tensor(ALPHAS, dtype=torch.float64)
    weights = torch.tensor([*WEIGHTS, 1.0], dtype=torch.float64)[labels[valid]][:, None]
    unweighted = torchvision_focal_loss(logits[valid], target, alpha=-1, gamma=1.5)
    theirs = (weights * (alpha * target + (1 - alpha) * (1 - target)) * unweighted).sum() / 4
    parameters = {"alpha": ALPHAS, "gamma": 1.5, "class_weights": WEIGHTS}
    ours, got = value_and_gradient(build("focal", parameters, 5), logits, labels, 4)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    # torchvision computes 1 - p_t by subtraction, which loses digits on easy elements
    torch.testing.assert_close(got, *torch.autograd.grad(theirs, logits), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("rule", ["inverse_frequency", "effective_number"])
def test_a_class_without_objects_does_not_change_the_other_weights(rule):
    with_class = build("cross_entropy", {"class_weights": rule, "class_counts": [1000, 500, 0]}, 3).class_weight
    without_class = build("cross_entropy", {"class_weights": rule, "class_counts": [1000, 500]}, 2).class_weight
    np.testing.assert_allclose(with_class[:2], without_class, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(LIBRARY))
@pytest.mark.parametrize("label", [0, 3])
def test_a_nan_logit_gives_a_nan_loss(name, label):
    logits = torch.zeros(4, 3)
    logits[1, 0] = math.nan
    loss = build(name, {}, 3)(logits.requires_grad_(), torch.tensor([0, label, 1, 2]), 1)
    assert loss.isnan()
