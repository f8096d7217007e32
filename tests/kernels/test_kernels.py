"""Every kernel backend that runs on a CPU, against formulas in float64 with NumPy."""

import shutil
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from losses_reference import GRADIENT_ATOL, GRADIENT_RTOL, VALUE_ATOL, VALUE_RTOL, as_float64
from torch import Tensor

from detector.core.errors import UserError
from detector.kernels import (
    cpu,
    dispatch,
    elementwise_terms,
    focal_terms,
    gradient_norm_histogram,
    harmonized_terms,
    sigmoid_focal_loss,
)

K = 5
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ALPHAS = [0.25, 0.5, 0.9, 0.1, 0.6]
WEIGHTS = [2.0, 0.5, 1.0, 3.0, 0.25]
COMPILED = (
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler"),
)
SMALL_BLOCK = 64  # elements: blocks of 12 rows of 5
each_backend = pytest.mark.parametrize("backend", ["reference", "cpu", pytest.param("compiled", marks=COMPILED)])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the blocks so small that a few hundred elements have many blocks and a shorter last block."""
    monkeypatch.setattr(cpu, "BLOCK_ELEMENTS", SMALL_BLOCK)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fresh_compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    """Reset torch.compile. It compiles each dtype and set of options, but only up to a limit."""
    yield
    if "compiled" in request.node.name:
        torch._dynamo.reset()


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits of both tails and labels from -1 to K.

    Some logits are +-100. The gradient norms are not near the edges of 300 bins. The first and the last row of each
    small block, and the last row of all, are foreground.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = torch.cat((4 * torch.randn(2000, generator=generator), torch.tensor([100.0, -100.0]).repeat(20))).to(dtype)
    position = pool.double().sigmoid() * 300
    pool = pool[((position - position.round()).abs() > 2e-3) | (pool.abs() == 100)]
    logits = pool[torch.randint(len(pool), shape, generator=generator)]
    labels = torch.randint(-1, shape[-1] + 1, shape[:-1], generator=generator)
    rows = max(1, SMALL_BLOCK // shape[-1])
    flat = labels.view(-1)
    for edge in (flat[::rows], flat[rows - 1 :: rows], flat[-1:]):
        edge[:] = torch.randint(shape[-1], edge.shape, generator=generator)
    return logits.requires_grad_(), labels


class Formula:
    """The values of each element that the formulas need: binary target, its sign +1 or -1, p_t, 1 - p_t, log p_t."""

    def __init__(self, logits: Tensor, labels: Tensor):
        x, self.labels = as_float64(logits), labels.numpy()
        self.targets = self.labels[..., None] == np.arange(x.shape[-1])
        self.counts = (self.labels >= 0)[..., None]
        self.y = np.where(self.targets, 1.0, -1.0)
        self.p_t, self.miss = 1 / (1 + np.exp(-self.y * x)), 1 / (1 + np.exp(self.y * x))
        self.log_p_t = -np.log1p(np.exp(-self.y * x))

    def focal(self, alpha, gamma: float, class_weight=None) -> tuple[np.ndarray, np.ndarray]:
        """Return values and slopes, (..., K) each. The slope is that of Lin et al. 2017, appendix B."""
        weight = self.counts.astype(float)
        if alpha is not None:
            weight = weight * np.where(self.targets, alpha, 1 - np.asarray(alpha))
        if class_weight is not None:
            by_label = np.array([*class_weight, 1.0, 1.0])  # background, and the index -1
            weight = weight * by_label[self.labels][..., None]
        modulator = weight * self.miss**gamma
        return -modulator * self.log_p_t, self.y * modulator * (gamma * self.p_t * self.log_p_t - self.miss)

    def harmonized(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bins = np.minimum((self.miss * len(weights)).astype(int), len(weights) - 1)
        weight = weights[bins] * self.counts
        return -weight * self.log_p_t, -self.y * weight * self.miss

    def sums(self, values: np.ndarray) -> list[float]:
        return [values[self.targets].sum(), values[~self.targets].sum()]

    def histogram(self, bins: int) -> np.ndarray:
        return np.histogram(self.miss[np.broadcast_to(self.counts, self.miss.shape)], bins, (0, 1))[0]


def check(
    sums: Tensor,
    logits: Tensor,
    formula: Formula,
    expected: tuple[np.ndarray, np.ndarray],
    upstream: tuple[float, float] = (1.0, 1.0),
) -> None:
    """Compare both sums, and the gradient of their combination by `upstream`, with the tolerance of the dtype."""
    dtype, (values, slopes) = logits.dtype, expected
    assert sums.shape == (2,) and sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(as_float64(sums), formula.sums(values), VALUE_RTOL[dtype], VALUE_ATOL[dtype])
    (gradient,) = torch.autograd.grad(sums, logits, sums.new_tensor(upstream), retain_graph=True)
    assert gradient.dtype == dtype and gradient.shape == logits.shape
    slopes = slopes * np.where(formula.targets, *upstream)
    scale = max(1.0, *map(abs, upstream))
    np.testing.assert_allclose(as_float64(gradient), slopes, 2 * GRADIENT_RTOL[dtype], scale * GRADIENT_ATOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_elementwise_terms(backend: str, dtype: torch.dtype):
    """The formula is cross entropy times a number for each row. No kernel implements it."""
    logits, labels = draw((2, 37, K), dtype)
    factors = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)).double()

    def cross_entropy(wide: Tensor, targets: Tensor, factor: Tensor) -> Tensor:
        assert wide.dtype == torch.promote_types(dtype, torch.float32) and targets.dtype == torch.bool
        return -F.logsigmoid(torch.where(targets, wide, -wide)) * factor

    formula = Formula(logits, labels)
    values, slopes = (part * factors.numpy()[..., None] / 8 for part in formula.focal(None, 0.0))
    extra = factors.to(torch.promote_types(dtype, torch.float32))
    sums = elementwise_terms(cross_entropy, logits, labels, extra, scale=torch.tensor(0.125), backend=backend)
    check(sums, logits, formula, (values, slopes), upstream=(3.0, -0.5))
    check(sums, logits, formula, (values, slopes))


CASES = list(product(["reference", "cpu"], DTYPES, [None, 0.3, ALPHAS], [0.0, 0.5, 1.0, 2.0, 5.0], [None, WEIGHTS]))
TO_COMPILE = [
    (torch.float32, 0.25, 2.0, None),
    (torch.float64, ALPHAS, 0.5, WEIGHTS),
    (torch.bfloat16, None, 0.0, WEIGHTS),
    (torch.float16, 0.25, 2.0, None),
]


@pytest.mark.parametrize(
    ("backend", "dtype", "alpha", "gamma", "class_weight"),
    [*CASES, *(pytest.param("compiled", *case, marks=COMPILED) for case in TO_COMPILE)],
)
def test_focal_terms(backend, dtype, alpha, gamma, class_weight):
    logits, labels = draw((2, 37, K), dtype)
    formula = Formula(logits, labels)
    values, slopes = formula.focal(alpha, gamma, class_weight)
    sums = focal_terms(
        logits,
        labels,
        alpha=alpha,
        gamma=gamma,
        class_weight=None if class_weight is None else torch.tensor(class_weight),
        scale=0.125,
        backend=backend,
    )
    check(sums, logits, formula, (values / 8, slopes / 8), upstream=(3.0, -0.5))


@each_backend
@pytest.mark.parametrize("scale", [0.25, torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64)], ids=str)
def test_scale_is_a_number_or_a_tensor(backend, scale):
    logits, labels = draw((37, K), torch.float32, seed=1)
    formula = Formula(logits, labels)
    values, slopes = formula.focal(0.25, 2.0)
    sums = focal_terms(logits, labels, alpha=0.25, gamma=2.0, scale=scale, backend=backend)
    check(sums, logits, formula, (values / 4, slopes / 4))
    total = sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=2.0, backend=backend)
    assert total.item() == pytest.approx(values.sum(), rel=1e-5)


# rows of a block or more, full and short blocks, a single row, no row
@pytest.mark.parametrize("shape", [(3, 100), (1, 64), (24, 5), (25, 5), (12, 5), (11, 5), (1, 1), (2, 3, 7, 5), (0, 5)])
def test_blocks_of_every_size(shape):
    logits, labels = draw(shape, torch.float32, seed=2)
    formula = Formula(logits, labels)
    alpha, weights = np.linspace(0.1, 0.9, shape[-1]), np.linspace(0.5, 3, shape[-1])
    given = {"alpha": alpha.tolist(), "gamma": 2.0, "class_weight": torch.from_numpy(weights)}
    check(focal_terms(logits, labels, **given, backend="cpu"), logits, formula, formula.focal(alpha, 2.0, weights))
    assert gradient_norm_histogram(logits, labels, 30, backend="cpu").tolist() == formula.histogram(30).tolist()
    weights = np.linspace(0.1, 2, 30)
    sums = harmonized_terms(logits, labels, torch.from_numpy(weights), backend="cpu")
    check(sums, logits, formula, formula.harmonized(weights))


@pytest.mark.parametrize("label", [0, K - 1, K, -1])
def test_blocks_of_one_kind(label):
    logits, _ = draw((40, K), torch.float32, seed=3)
    labels = torch.full((40,), label)
    formula = Formula(logits, labels)
    given = {"alpha": ALPHAS, "gamma": 2.0, "class_weight": torch.tensor(WEIGHTS)}
    check(focal_terms(logits, labels, **given, backend="cpu"), logits, formula, formula.focal(ALPHAS, 2.0, WEIGHTS))
    assert gradient_norm_histogram(logits, labels, 10, backend="cpu").tolist() == formula.histogram(10).tolist()


@pytest.mark.parametrize(
    ("backend", "bounds"),
    [
        *product(["reference", "cpu"], [(0, 23), (7, 31), (39, 40), (5, 5)]),
        *(pytest.param("compiled", bounds, marks=COMPILED) for bounds in ((7, 31), (5, 5))),
    ],
    ids=str,
)
def test_level_views(backend, bounds):
    """The images of a pyramid level are contiguous, but the level is not."""
    all_logits, all_labels = draw((3, 40, K), torch.float32, seed=4)
    logits, labels = all_logits[:, slice(*bounds)], all_labels[:, slice(*bounds)]
    formula = Formula(logits, labels)
    given = {"alpha": ALPHAS, "gamma": 2.0, "class_weight": torch.tensor(WEIGHTS)}
    sums = focal_terms(logits, labels, **given, backend=backend)
    check(sums, logits, formula, formula.focal(ALPHAS, 2.0, WEIGHTS), upstream=(2.0, 0.5))
    (gradient,) = torch.autograd.grad(sums.sum(), all_logits)
    outside = torch.ones(40, dtype=torch.bool)
    outside[slice(*bounds)] = False
    assert not gradient[:, outside].any()
    assert gradient_norm_histogram(logits, labels, 30, backend=backend).tolist() == formula.histogram(30).tolist()
    weights = np.linspace(0.1, 2, 30)
    sums = harmonized_terms(logits, labels, torch.from_numpy(weights), backend=backend)
    check(sums, logits, formula, formula.harmonized(weights))


@pytest.mark.parametrize("cut", [lambda x: x, lambda x: x[:, 7:31], lambda x: x[1, 3:], lambda x: x[:1, 7:31]])
def test_blocks_are_views(cut):
    all_logits, all_labels = draw((3, 40, K), torch.float32, seed=4)
    logits = cut(all_logits.detach())
    runs = cpu._Blocks(logits, cut(all_labels)).runs
    assert all(run.untyped_storage().data_ptr() == all_logits.untyped_storage().data_ptr() for run in runs)
    assert torch.equal(torch.cat(list(runs)), logits.reshape(-1, K))


@each_backend
@pytest.mark.parametrize("bins", [1, 10, 30, 300])
def test_gradient_norm_histogram(backend, bins):
    for dtype in DTYPES:
        logits, labels = draw((2, 137, K), dtype, seed=5)
        counts = gradient_norm_histogram(logits, labels, bins, backend=backend)
        assert counts.dtype == torch.int64 and not counts.requires_grad
        assert counts.tolist() == Formula(logits, labels).histogram(bins).tolist()
        assert counts[0] > 0 and counts[-1] > 0  # there are norms of 0 and 1


@each_backend
def test_a_norm_on_an_edge_belongs_to_the_upper_bin_and_a_norm_of_one_to_the_last(backend):
    logits, labels = torch.tensor([[0.0, 0.0], [-200.0, -200.0]]), torch.tensor([0, 1])
    assert gradient_norm_histogram(logits, labels, 4, backend=backend).tolist() == [1, 0, 2, 1]


@pytest.mark.parametrize(
    ("backend", "bins", "dtype"),
    [
        *product(["reference", "cpu"], [1, 10, 30, 300], DTYPES),
        pytest.param("compiled", 300, torch.float16, marks=COMPILED),
    ],
)
def test_harmonized_terms(backend, bins, dtype):
    logits, labels = draw((2, 37, K), dtype, seed=6)
    formula, weights = Formula(logits, labels), np.linspace(0.1, 2, bins)
    sums = harmonized_terms(logits, labels, torch.from_numpy(weights), backend=backend)
    check(sums, logits, formula, formula.harmonized(weights), upstream=(-0.25, 3.0))


def both_terms(logits: Tensor, labels: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Return the sums of the focal and of the harmonized loss. All bins have the weight 1."""
    focal = focal_terms(logits, labels, alpha=0.25, gamma=2.0, backend=backend)
    return focal, harmonized_terms(logits, labels, torch.ones(10), backend=backend)


@each_backend
def test_repeated_backward_passes_with_other_upstream_gradients(backend):
    logits, labels = draw((37, K), torch.float32, seed=7)
    formula = Formula(logits, labels)
    expected = formula.focal(0.25, 2.0), formula.harmonized(np.ones(10))
    for sums, terms in zip(both_terms(logits, labels, backend), expected, strict=True):
        for upstream in ((1.0, 1.0), (2.0, -3.0), (0.0, 1.0), (1.0, 1.0)):
            check(sums, logits, formula, terms, upstream)


@each_backend
def test_accumulation_in_place_does_not_change_a_later_backward_pass(backend):
    logits, labels = draw((37, K), torch.float32, seed=7)
    formula = Formula(logits, labels)
    expected = formula.focal(0.25, 2.0), formula.harmonized(np.ones(10))
    for sums, (_, slopes) in zip(both_terms(logits, labels, backend), expected, strict=True):
        logits.grad = None
        for passes in (1, 2, 3):
            sums.sum().backward(retain_graph=True)
            np.testing.assert_allclose(as_float64(logits.grad), passes * slopes, 1e-5, passes * 1e-6)
        logits.grad.zero_()
        sums.sum().backward()
        np.testing.assert_allclose(as_float64(logits.grad), slopes, 1e-5, 1e-6)


@each_backend
@pytest.mark.parametrize("label", [1, K])
def test_a_nan_logit_makes_the_loss_nan(backend, label):
    logits, labels = draw((37, K), torch.float32, seed=8)
    labels[5] = label
    with torch.no_grad():
        logits[5, 1] = torch.nan
    nan_sum, other_sum = (0, 1) if label == 1 else (1, 0)
    for sums in both_terms(logits, labels, backend):
        assert sums[nan_sum].isnan() and sums[other_sum].isfinite()
        (gradient,) = torch.autograd.grad(sums.sum(), logits)
        assert gradient[5, 1].isnan()
    assert gradient_norm_histogram(logits, labels, 10, backend=backend).sum() == (labels >= 0).sum() * K


@each_backend
def test_nan_in_ignored_rows_does_not_reach_the_loss(backend):
    logits, labels = draw((37, K), torch.float32, seed=8)
    labels[5] = -1
    clean = [sums.tolist() for sums in both_terms(logits, labels, backend)]
    histogram = gradient_norm_histogram(logits, labels, 10, backend=backend)
    with torch.no_grad():
        logits[5] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, torch.nan])
    assert [sums.tolist() for sums in both_terms(logits, labels, backend)] == clean
    assert torch.equal(gradient_norm_histogram(logits, labels, 10, backend=backend), histogram)


@pytest.mark.parametrize(
    ("backend", "gamma"),
    [
        *product(["reference", "cpu"], [0.0, 0.5, 1.0, 2.0]),
        pytest.param("compiled", 2.0, marks=COMPILED),
    ],
)
def test_infinite_logits(backend, gamma):
    """Right elements have no loss and no slope. Wrong elements have an infinite loss, only in their sum."""
    right = torch.tensor([[torch.inf, -torch.inf], [-torch.inf, -torch.inf]], requires_grad=True)
    labels = torch.tensor([0, 2])
    sums = focal_terms(right, labels, alpha=0.25, gamma=gamma, backend=backend)
    assert sums.tolist() == [0, 0]
    assert not torch.autograd.grad(sums.sum(), right)[0].any()
    for wrong, expected in (([-torch.inf, -torch.inf], [torch.inf, 0]), ([torch.inf, torch.inf], [0, torch.inf])):
        sums = focal_terms(torch.tensor([wrong]), labels[:1], alpha=0.25, gamma=gamma, backend=backend)
        assert sums.tolist() == expected
    assert gradient_norm_histogram(right, labels, 4, backend=backend).tolist() == [4, 0, 0, 0]
    assert gradient_norm_histogram(-right, labels, 4, backend=backend).tolist() == [0, 0, 0, 4]
    assert harmonized_terms(right, labels, torch.ones(4), backend=backend).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *product(["reference", "cpu"], DTYPES),
        pytest.param("compiled", torch.float16, marks=COMPILED),
    ],
    ids=str,
)
def test_saturated_logits_keep_their_digits(backend, dtype):
    logits = torch.tensor([[100, -100], [-100, 100], [100, 100], [-100, -100]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([0, 0, 2, 2])
    formula = Formula(logits, labels)
    for gamma in (0.0, 2.0):
        sums = focal_terms(logits, labels, alpha=0.25, gamma=gamma, backend=backend)
        check(sums, logits, formula, formula.focal(0.25, gamma), upstream=(2.0, -3.0))
    sums = harmonized_terms(logits, labels, torch.tensor([0.5, 2.0]), backend=backend)
    check(sums, logits, formula, formula.harmonized(np.array([0.5, 2.0])))


@each_backend
def test_small_gradients_in_fp16_are_multiplied_before_they_are_rounded(backend):
    logits, labels = draw((2, 37, K), torch.float16, seed=9)
    formula = Formula(logits, labels)
    values, slopes = formula.focal(0.25, 2.0)
    sums = focal_terms(logits, labels, alpha=0.25, gamma=2.0, scale=1e-9, backend=backend) * 1e9
    check(sums, logits, formula, (values, slopes))


# Dispatch


def refusal(logits: Tensor, **choice) -> UserError:
    """Return the error of the kernels, which is the same for all of them."""
    labels = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    errors = []
    for call in (
        lambda: focal_terms(logits, labels, alpha=None, gamma=0.0, **choice),
        lambda: harmonized_terms(logits, labels, torch.ones(3, device=logits.device), **choice),
        lambda: gradient_norm_histogram(logits, labels, 3, **choice),
    ):
        with pytest.raises(UserError) as error:
            call()
        errors.append(error.value)
    assert len({str(error) for error in errors}) == 1
    return errors[0]


def test_an_unknown_backend_is_refused(monkeypatch):
    by_argument = refusal(torch.zeros(2, 3), backend="cpp")
    monkeypatch.setenv("DETECTOR_KERNELS", "cpp")
    for error in (by_argument, refusal(torch.zeros(2, 3))):
        assert "'cpp'" in error.problem and all(name in error.remedy for name in dispatch.BACKENDS)


def test_the_cpu_backend_supports_no_other_device():
    error = refusal(torch.zeros(2, 3, device="meta"), backend="cpu")
    assert "'cpu'" in error.problem and "meta" in error.problem and "'reference'" in error.remedy


def test_triton_on_a_cpu_is_refused_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    dispatch._backend.cache_clear()  # an earlier test may have used the interpreter
    error = refusal(torch.zeros(2, 3), backend="triton")
    assert "'triton'" in error.problem and "cpu" in error.problem and "'cpu'" in error.remedy


def test_an_argument_overrides_the_environment(monkeypatch):
    logits, labels = draw((7, K), torch.float32)

    def is_blocked(**choice) -> bool:
        return "Fused" in focal_terms(logits, labels, alpha=None, gamma=0.0, **choice).grad_fn.name()

    monkeypatch.delenv("DETECTOR_KERNELS", raising=False)
    assert is_blocked() and not is_blocked(backend="reference")
    monkeypatch.setenv("DETECTOR_KERNELS", "reference")
    assert not is_blocked() and is_blocked(backend="cpu")
    monkeypatch.setenv("DETECTOR_KERNELS", "")
    assert is_blocked()


def test_a_wrong_number_of_class_values_is_refused():
    logits, labels = draw((7, K), torch.float32)
    for alpha in ([0.5, 0.5], torch.full((K + 1,), 0.5)):
        with pytest.raises(ValueError, match=rf"^alpha .*\({len(alpha)},\).*{K}"):
            focal_terms(logits, labels, alpha=alpha, gamma=2.0)
    with pytest.raises(ValueError, match=rf"^class_weight .*\(2,\).*{K}"):
        focal_terms(logits, labels, alpha=None, gamma=2.0, class_weight=torch.ones(2))
