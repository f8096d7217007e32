import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from losses_reference import CLASSIFICATION, Focal, as_float64, assert_matches, draw_labels, draw_logits
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from detector.kernels import sigmoid_focal_loss
from detector.losses import CLASSIFICATION_LOSSES

CASES = [
    ("cross_entropy", {"alpha": None}),
    ("cross_entropy", {"alpha": 0.3}),
    ("focal", {"alpha": 0.25, "gamma": 2.0}),
    ("focal", {"alpha": None, "gamma": 0.0}),
    ("focal", {"alpha": 0.3, "gamma": 0.5}),
    ("focal", {"alpha": None, "gamma": 1.0}),
    ("focal", {"alpha": 0.75, "gamma": 5.0}),
    ("ghm_c", {"bins": 30, "momentum": 0.75, "scope": "batch", "power": 0.5}),
    ("ghm_c", {"bins": 30, "momentum": 0.0, "scope": "batch", "power": 1.0}),
    ("ghm_c", {"bins": 1, "momentum": 0.5, "scope": "batch", "power": 1.0}),
]
DEFAULTS = [CASES[0], CASES[2], CASES[7]]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (7, 3), (2, 13, 5), (0, 4), (9, 1), (3, 0, 2)]

each_loss = pytest.mark.parametrize(
    ("name", "parameters"), CASES, ids=[f"{n}-{'-'.join(str(v) for v in p.values())}" for n, p in CASES]
)


def build(name, parameters):
    return CLASSIFICATION_LOSSES.build(name, **parameters)


def check(name, parameters, logits, labels, num_fg, upstream=1.0):
    """Compare value, gradient and split of a new loss with a new reference."""
    logits.requires_grad_()
    expected = CLASSIFICATION[name](**parameters)(logits, labels, num_fg)
    loss = build(name, parameters)(logits, labels, num_fg)
    assert_matches(loss, logits, expected, upstream=upstream, fp32_counts=name == "ghm_c")
    parts = build(name, parameters).split(logits, labels, num_fg)
    assert parts.shape == (2,)
    np.testing.assert_allclose(as_float64(parts), expected.parts, rtol=1e-5, atol=1e-7)


def test_names():
    assert set(CLASSIFICATION) <= set(CLASSIFICATION_LOSSES.names())


@pytest.mark.parametrize(("name", "defaults"), DEFAULTS)
def test_defaults(name, defaults):
    logits, labels = draw_logits((2, 13, 5), torch.float32, seed=2), draw_labels((2, 13), 5, seed=2)
    plain, explicit = build(name, {}), build(name, defaults)
    for part in (logits, -logits):  # two steps, so that the momentum has an effect
        assert torch.equal(plain(part, labels, 3), explicit(part, labels, 3))


@each_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_formula(name, parameters, dtype, shape):
    logits, labels = draw_logits(shape, dtype, seed=3), draw_labels(shape[:-1], shape[-1], seed=3)
    check(name, parameters, logits, labels, num_fg=5, upstream=3.7)


@each_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_views(name, parameters, dtype):
    head_output = draw_logits((2, 3, 5, 8), dtype, seed=4)  # (B, K, H, W)
    logits = head_output.permute(0, 2, 3, 1)[:, 1:, ::2]  # (B, H - 1, W / 2, K)
    labels = draw_labels((2, 4, 4), num_classes=3, seed=4).transpose(1, 2)
    assert not logits.is_contiguous() and not labels.is_contiguous()
    check(name, parameters, logits, labels, num_fg=7, upstream=3.7)


@each_loss
def test_gradient_reaches_the_base_of_a_view(name, parameters):
    head_output = draw_logits((2, 3, 5, 8), torch.float32, seed=5).requires_grad_()
    labels = draw_labels((2, 5, 8), num_classes=3, seed=5)
    logits = head_output.permute(0, 2, 3, 1)
    build(name, parameters)(logits, labels, 6).backward()
    expected = CLASSIFICATION[name](**parameters)(logits, labels, 6)
    np.testing.assert_allclose(as_float64(head_output.grad.permute(0, 2, 3, 1)), expected.gradient, 1e-5, 1e-6)


@each_loss
def test_gradcheck(name, parameters):
    logits = draw_logits((6, 3), torch.float64, seed=6).clamp(-6, 6).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 3, -1])
    assert torch.autograd.gradcheck(lambda x: build(name, parameters)(x, labels, 2), logits)


@each_loss
@pytest.mark.parametrize("num_fg", [0, 0.5, 1, 2.5, 40, torch.tensor(0), torch.tensor(4), torch.tensor(4.5)], ids=str)
def test_num_fg_is_a_number_or_a_tensor_clamped_at_one(name, parameters, num_fg):
    logits, labels = draw_logits((7, 3), torch.float32, seed=7), draw_labels((7,), 3, seed=7)
    check(name, parameters, logits, labels, num_fg)


@each_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_saturated_logits_stay_finite_and_exact(name, parameters, dtype):
    logits = torch.tensor([[100.0, -100.0], [-100.0, 100.0], [100.0, 100.0], [-100.0, -100.0]], dtype=dtype)
    labels = torch.tensor([0, 0, 2, 2])  # right, wrong, wrong, right
    check(name, parameters, logits, labels, num_fg=2)
    (gradient,) = torch.autograd.grad(build(name, parameters)(logits, labels, 2), logits)
    assert gradient.isfinite().all()
    assert (gradient[1] * torch.tensor([-1, 1]) > 0).all() and (gradient[2] > 0).all()


@each_loss
def test_no_positives(name, parameters):
    logits, labels = draw_logits((2, 9, 4), torch.float32, seed=8), torch.full((2, 9), 4)
    check(name, parameters, logits, labels, num_fg=0)
    assert build(name, parameters).split(logits, labels, 0)[0] == 0


@each_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_ignored(name, parameters, dtype):
    logits = draw_logits((2, 9, 4), dtype, seed=9).requires_grad_()
    labels = torch.full((2, 9), -1)
    loss = build(name, parameters)(logits, labels, 0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0 and (gradient == 0).all()
    assert build(name, parameters).split(logits, labels, 0).tolist() == [0, 0]


@each_loss
def test_ignored_rows_may_hold_any_value(name, parameters):
    logits, labels = draw_logits((5, 3), torch.float32, seed=10), torch.tensor([0, 3, 1, -1, -1])
    expected = CLASSIFICATION[name](**parameters)(logits, labels, 2)
    logits[3:] = torch.tensor([[200.0, -200.0, 1e30], [0.0, -1e30, 3.0]])
    logits.requires_grad_()
    assert_matches(build(name, parameters)(logits, labels, 2), logits, expected)


@each_loss
def test_split_sums_to_the_loss(name, parameters):
    logits, labels = draw_logits((2, 13, 5), torch.float32, seed=11), draw_labels((2, 13), 5, seed=11)
    loss = build(name, parameters)
    total = copy.deepcopy(loss)(logits, labels, 3)
    torch.testing.assert_close(loss.split(logits, labels, 3).sum(), total, rtol=1e-5, atol=0)


@each_loss
def test_runs_without_gradients(name, parameters):
    logits, labels = draw_logits((7, 3), torch.float32, seed=12).requires_grad_(), draw_labels((7,), 3, seed=12)
    with torch.no_grad():
        loss = build(name, parameters)(logits, labels, 3)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, build(name, parameters)(logits, labels, 3).detach(), rtol=1e-6, atol=0)


@each_loss
def test_second_backward_and_second_call(name, parameters):
    logits, labels = draw_logits((7, 3), torch.float32, seed=13).requires_grad_(), draw_labels((7,), 3, seed=13)
    expected = CLASSIFICATION[name](**parameters)(logits, labels, 3).gradient
    before = logits.detach().clone()
    loss = build(name, parameters)
    first, second = loss(logits, labels, 3), loss(logits, labels, 3)
    first.backward(retain_graph=True)
    first.backward(retain_graph=True)
    np.testing.assert_allclose(as_float64(logits.grad), 2 * expected, rtol=1e-5, atol=2e-6)
    (first + second).backward()  # the second call must not change the tensors that the first call saved
    np.testing.assert_allclose(as_float64(logits.grad), 4 * expected, rtol=1e-5, atol=4e-6)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "ghm_c"])
def test_level_sizes_are_accepted_and_change_nothing_over_a_batch(name):
    logits, labels = draw_logits((2, 13, 5), torch.float32, seed=14), draw_labels((2, 13), 5, seed=14)
    plain = build(name, {})(logits, labels, 3)
    assert torch.equal(build(name, {})(logits, labels, 3, level_sizes=(8, 4, 1)), plain)
    assert torch.equal(build(name, {})(logits, labels, 3, level_sizes=None), plain)


def one_hot_and_valid(logits, labels):
    num_classes = logits.shape[-1]
    valid = labels >= 0
    return F.one_hot(labels[valid], num_classes + 1)[:, :num_classes].to(logits.dtype), valid


def test_focal_without_focusing_is_half_of_cross_entropy():
    logits, labels = draw_logits((2, 13, 5), torch.float64, seed=15).requires_grad_(), draw_labels((2, 13), 5, seed=15)
    targets, valid = one_hot_and_valid(logits, labels)
    half = F.binary_cross_entropy_with_logits(logits[valid], targets, reduction="sum") / 2 / 6
    ours = build("focal", {"alpha": 0.5, "gamma": 0.0})(logits, labels, 6)
    torch.testing.assert_close(ours, half, rtol=1e-12, atol=0)
    (wanted,), (got,) = torch.autograd.grad(half, logits), torch.autograd.grad(ours, logits)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("alpha", [None, 0.3, 0.75])
def test_cross_entropy_is_focal_loss_without_focusing(alpha):
    logits, labels = draw_logits((7, 3), torch.float64, seed=16), draw_labels((7,), 3, seed=16)
    plain = build("cross_entropy", {"alpha": alpha})(logits, labels, 2)
    torch.testing.assert_close(
        build("focal", {"alpha": alpha, "gamma": 0.0})(logits, labels, 2), plain, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.25, 0.0), (0.6, 1.0), (None, 2.0), (0.25, 5.0)])
def test_focal_equals_torchvision_on_one_hot_targets(alpha, gamma):
    logits, labels = draw_logits((2, 13, 5), torch.float64, seed=17).requires_grad_(), draw_labels((2, 13), 5, seed=17)
    targets, valid = one_hot_and_valid(logits, labels)
    theirs = torchvision_focal_loss(logits[valid], targets, -1 if alpha is None else alpha, gamma, reduction="sum") / 4
    ours = build("focal", {"alpha": alpha, "gamma": gamma})(logits, labels, 4)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    (wanted,), (got,) = torch.autograd.grad(theirs, logits), torch.autograd.grad(ours, logits)
    # torchvision computes 1 - p_t by subtraction, which loses digits on easy elements
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("p_t", "published"), [(0.9, 0.0010536), (0.95, 0.00012823), (0.2, 1.03004)])
@pytest.mark.parametrize("label", [0, 1], ids=["foreground", "background"])
def test_published_focal_numbers(p_t, published, label):
    logit = math.log(p_t / (1 - p_t)) * (1 if label == 0 else -1)
    loss = build("focal", {"alpha": None, "gamma": 2.0})(torch.tensor([[logit]]), torch.tensor([label]), 1)
    assert loss.item() == pytest.approx(published, rel=5e-5)  # published with five digits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alpha", [None, 0.3])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
def test_focal_kernels_agree_with_the_formula_and_each_other(dtype, alpha, gamma, strided):
    drawn = draw_logits((2, 5, 6, 4), dtype, seed=18)
    drawn[0, 0, 0] = torch.tensor([100.0, -100.0, 20.0, 0.0])
    logits = (drawn.permute(0, 2, 3, 1)[:, ::2] if strided else drawn).requires_grad_()
    labels = draw_labels(logits.shape[:-1], logits.shape[-1], seed=18)
    expected = Focal(alpha, gamma)(logits, labels, num_fg=1)
    losses = {b: sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma, backend=b) for b in ("reference", "cpu")}
    for loss in losses.values():
        assert_matches(loss, logits, expected, upstream=3.7)
    torch.testing.assert_close(losses["cpu"], losses["reference"], rtol=1e-6, atol=0)
    default = sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    assert_matches(default, logits, expected)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_focal_kernels_on_odd_shapes(backend, shape):
    logits, labels = draw_logits(shape, torch.float32, seed=19).requires_grad_(), draw_labels(shape[:-1], shape[-1], 19)
    loss = sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=2.0, backend=backend)
    assert_matches(loss, logits, Focal(0.25, 2.0)(logits, labels, num_fg=1), upstream=3.7)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_focal_kernels_gradcheck(backend):
    logits = draw_logits((6, 3), torch.float64, seed=20).clamp(-6, 6).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 3, -1])
    for gamma in (0.0, 0.5, 2.0):
        assert torch.autograd.gradcheck(
            lambda x, gamma=gamma: sigmoid_focal_loss(x, labels, alpha=0.25, gamma=gamma, backend=backend), logits
        )
