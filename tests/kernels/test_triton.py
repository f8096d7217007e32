"""The Triton kernels against formulas in float64: on a GPU, and under the interpreter in a process on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from detector.kernels import triton as kernels  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it during its import, before any fixture
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU; test_under_the_interpreter runs these")
DEVICES = ["cpu"] if INTERPRETED else [pytest.param("cuda", marks=NO_GPU)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SUM_TOLERANCE = {torch.float64: 1e-12}  # for other dtypes 2e-6, because the kernels compute in fp32
GRADIENT_TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
# less than a block, a full block, and more; rows shorter and longer than a block and than a load of 16 bytes
SHAPES = [(1, 1), (4, 1), (7, 3), (256, 8), (257, 8), (3, 400, 6), (61, 80), (2, 5000), (5,)]

each_device = pytest.mark.parametrize("device", DEVICES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this process runs under the interpreter")
def test_under_the_interpreter():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits mostly within +-12, some of them +-100, and labels from -1 (ignored) to K (background)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 4
    extremes = torch.rand(shape, generator=generator) < 0.02
    logits[extremes] = logits[extremes].sign() * 100
    labels = torch.randint(-1, shape[-1] + 1, shape[:-1], generator=generator)
    return logits.to(device, dtype).requires_grad_(), labels.to(device)


def signed_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits whose sigmoid is 1 - p_t, and the binary targets."""
    targets = labels[..., None] == torch.arange(logits.shape[-1], device=labels.device)
    return torch.where(targets, -logits, logits), targets


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def parts(elements: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    elements = elements.where((labels >= 0)[..., None], 0)
    return torch.stack((elements.where(targets, 0).sum(), elements.where(~targets, 0).sum()))


def expected_focal(logits, labels, alpha=None, gamma=0.0, class_weight=None, scale=1.0) -> Tensor:
    signed, targets = signed_logits(logits, labels)
    elements = scale * softplus(signed) * (-gamma * softplus(-signed)).exp()
    if alpha is not None:
        elements = elements * (alpha * targets.double() + (1 - alpha) * (~targets).double())
    if class_weight is not None:
        background = class_weight.new_ones(2)  # for the labels K and -1
        elements = elements * torch.cat((class_weight, background))[labels][..., None]
    return parts(elements, labels, targets)


def expected_harmonized(logits, labels, weights) -> Tensor:
    signed, targets = signed_logits(logits, labels)
    bins = (signed.detach().sigmoid() * len(weights)).long().clamp(max=len(weights) - 1)
    return parts(softplus(signed) * weights.double()[bins], labels, targets)


def off_the_edges(logits: Tensor, labels: Tensor, bins: int) -> None:
    """Change the logits whose gradient norm is so near an edge of a bin that rounding decides."""
    with torch.no_grad():
        position = signed_logits(logits.double(), labels)[0].sigmoid() * bins
        logits[(position - position.round()).abs() < 1e-4] = 50


def double(logits: Tensor) -> Tensor:
    return logits.detach().double().requires_grad_()


def check(sums: Tensor, logits: Tensor, expected: Tensor, reference: Tensor, upstream=(2.0, -0.5)) -> None:
    """Compare value and gradient of `sums` by `logits` with those of `expected` by `reference`."""
    tolerance = SUM_TOLERANCE.get(logits.dtype, 2e-6)
    assert sums.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(sums.double(), expected, rtol=tolerance, atol=0)
    sums.backward(sums.new_tensor(upstream))
    expected.backward(expected.new_tensor(upstream))
    assert logits.grad.dtype == logits.dtype
    smallest = 6e-8 if logits.dtype == torch.float16 else 1e-30  # below these, fp16 and fp32 underflow
    rtol = GRADIENT_TOLERANCE[logits.dtype]
    torch.testing.assert_close(logits.grad.double(), reference.grad, rtol=rtol, atol=smallest)


@each_device
@each_dtype
@pytest.mark.parametrize(
    ("alpha", "gamma", "weighted"),
    [
        (None, 0.0, False),
        (0.25, 2.0, False),
        ("columns", 2.0, True),
        (0.3, 0.5, False),
        (None, 1.0, True),
        (0.75, 5.0, False),
        ("columns", 0.0, False),
    ],
)
def test_focal_terms(device, dtype, alpha, gamma, weighted):
    logits, labels = draw((2, 67, 20), dtype, device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if alpha == "columns":
        alpha = torch.linspace(0.1, 0.9, 20, device=device, dtype=wide)
    class_weight = torch.linspace(0.5, 3, 20, device=device, dtype=wide) if weighted else None
    scale = torch.tensor(0.125, device=device, dtype=wide)
    sums = kernels.focal_terms(logits, labels, alpha, gamma, class_weight, scale)
    reference = double(logits)
    check(sums, logits, expected_focal(reference, labels, alpha, gamma, class_weight, scale), reference)


@each_device
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(device, dtype, shape):
    logits, labels = draw(shape, dtype, device, seed=1)
    off_the_edges(logits, labels, 10)
    reference = double(logits)
    sums = kernels.focal_terms(logits, labels, 0.25, 2.0, None, torch.ones((), device=device))
    check(sums, logits, expected_focal(reference, labels, 0.25, 2.0), reference)
    logits.grad = reference.grad = None
    weights = torch.rand(10, device=device)
    sums = kernels.harmonized_terms(logits, labels, weights)
    check(sums, logits, expected_harmonized(reference, labels, weights), reference)
    assert torch.equal(kernels.gradient_norm_histogram(logits, labels, 10), counted(logits, labels, 10))


def counted(logits: Tensor, labels: Tensor, bins: int) -> Tensor:
    norms = signed_logits(logits.detach().double(), labels)[0].sigmoid()[labels >= 0]
    return torch.from_numpy(np.histogram(norms.cpu().numpy(), bins, (0, 1))[0]).to(logits.device)


@each_device
@each_dtype
@pytest.mark.parametrize("bins", [1, 10, 30, 32, 100])
def test_histogram_and_weights(device, dtype, bins):
    logits, labels = draw((2, 151, 8), dtype, device, seed=2)
    off_the_edges(logits, labels, bins)
    histogram = kernels.gradient_norm_histogram(logits, labels, bins)
    assert histogram.dtype == torch.int64
    assert torch.equal(histogram, counted(logits, labels, bins))
    weights = torch.linspace(0.1, 2, bins, device=device)
    reference = double(logits)
    sums = kernels.harmonized_terms(logits, labels, weights)
    check(sums, logits, expected_harmonized(reference, labels, weights), reference)


@each_device
@each_dtype
@pytest.mark.parametrize("bins", [2, 10, 30])
def test_a_logit_of_zero_is_in_the_upper_bin(device, dtype, bins):
    labels = torch.tensor([0, 1], device=device)
    histogram = kernels.gradient_norm_histogram(torch.zeros(2, 2, device=device, dtype=dtype), labels, bins)
    assert histogram[bins // 2] == histogram.sum() == 4


@each_device
@each_dtype
def test_extreme_logits(device, dtype):
    logits = torch.tensor([[-100.0, 100, -1000, 1000], [3e4, -3e4, 0, -88]], device=device, dtype=dtype)
    logits = torch.cat((logits, logits)).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1], device=device)
    scale = torch.ones((), device=device)
    for gamma in (0.0, 0.5, 2.0, 3.3):
        logits.grad, reference = None, double(logits)
        sums = kernels.focal_terms(logits, labels, None, gamma, None, scale)
        check(sums, logits, expected_focal(reference, labels, None, gamma), reference, upstream=(1.0, 1.0))
        assert logits.grad.isfinite().all()
    weights = torch.rand(30, device=device)
    logits.grad, reference = None, double(logits)
    sums = kernels.harmonized_terms(logits, labels, weights)
    check(sums, logits, expected_harmonized(reference, labels, weights), reference)


@each_device
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_small_losses_keep_their_digits(device, gamma):
    scale = torch.ones((), device=device)
    for logit in np.linspace(-20, 20, 17):
        logits = torch.full((1, 1), logit, device=device, dtype=torch.float32, requires_grad=True)
        for label in (0, 1):
            logits.grad, reference = None, double(logits)
            labels = torch.tensor([label], device=device)
            sums = kernels.focal_terms(logits, labels, None, gamma, None, scale)
            expected = expected_focal(reference, labels, None, gamma)
            sums.sum().backward()
            expected.sum().backward()
            torch.testing.assert_close(sums.double(), expected, rtol=4e-6, atol=0)
            torch.testing.assert_close(logits.grad.double(), reference.grad, rtol=6e-6, atol=0)


@each_device
@each_dtype
@pytest.mark.parametrize("upstream", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (3.0, -7.0)])
def test_upstream_gradients_and_a_second_backward_pass(device, dtype, upstream):
    logits, labels = draw((2, 301, 16), dtype, device, seed=3)
    reference = double(logits)
    sums = kernels.focal_terms(logits, labels, 0.25, 2.0, None, torch.ones((), device=device))
    expected = expected_focal(reference, labels, 0.25, 2.0)
    for factors in (upstream, (0.5, 2.0)):
        logits.grad = reference.grad = None
        sums.backward(sums.new_tensor(factors), retain_graph=True)
        expected.backward(expected.new_tensor(factors), retain_graph=True)
        rtol = 2 * GRADIENT_TOLERANCE[dtype]  # rounded before and after the factor
        torch.testing.assert_close(logits.grad.double(), reference.grad, rtol=rtol, atol=6e-8)


@each_device
@each_dtype
def test_level_views(device, dtype):
    """The kernels read slices of a batch, as for pyramid levels, without a copy."""
    logits, labels = draw((3, 120, 8), dtype, device, seed=4)
    off_the_edges(logits, labels, 30)
    reference = double(logits)
    scale, weights = torch.ones((), device=device), torch.rand(30, device=device)
    levels = zip(logits.split((100, 15, 5), dim=1), labels.split((100, 15, 5), dim=1), strict=True)
    sums, histogram = 0, 0
    for level in levels:
        assert all(
            image.data_ptr() == view.data_ptr() for image, view in zip(kernels._as_images(*level), level, strict=True)
        )
        sums = sums + kernels.focal_terms(*level, None, 2.0, None, scale) + kernels.harmonized_terms(*level, weights)
        histogram = histogram + kernels.gradient_norm_histogram(*level, 30)
    expected = expected_focal(reference, labels, None, 2.0) + expected_harmonized(reference, labels, weights)
    assert torch.equal(histogram, counted(logits, labels, 30))
    torch.testing.assert_close(sums.double(), expected, rtol=2e-6, atol=0)
    sums.backward(sums.new_tensor((2.0, 3.0)))
    expected.backward(expected.new_tensor((2.0, 3.0)))
    rtol = 2 * GRADIENT_TOLERANCE[dtype]  # two gradients are added
    torch.testing.assert_close(logits.grad.double(), reference.grad, rtol=rtol, atol=6e-8)


@each_device
def test_other_layouts(device):
    logits, labels = draw((40, 6, 12), torch.float32, device, seed=5)
    for view in (lambda x: x.movedim(0, 1), lambda x: x[:, ::2], lambda x: x[..., :1]):
        logits.grad, reference = None, double(logits)
        part, labels_part = view(logits), labels.T if view(logits).shape[0] == 6 else labels[:, : view(logits).shape[1]]
        sums = kernels.focal_terms(part, labels_part, 0.25, 2.0, None, torch.ones((), device=device))
        check(sums, logits, expected_focal(view(reference), labels_part, 0.25, 2.0), reference)


@each_device
def test_programs_that_loop(device, monkeypatch):
    monkeypatch.setattr(kernels, "MAX_PROGRAMS", 2)
    logits, labels = draw((2, 900, 8), torch.float32, device, seed=6)
    off_the_edges(logits, labels, 30)
    reference = double(logits)
    assert torch.equal(kernels.gradient_norm_histogram(logits, labels, 30), counted(logits, labels, 30))
    sums = kernels.focal_terms(logits, labels, 0.25, 2.0, None, torch.ones((), device=device))
    check(sums, logits, expected_focal(reference, labels, 0.25, 2.0), reference)


@each_device
def test_fp16_gradients_are_multiplied_before_they_are_rounded(device):
    logits, labels = draw((50, 8), torch.float16, device, seed=7)
    reference = double(logits)
    sums = kernels.focal_terms(logits, labels, 0.25, 2.0, None, torch.tensor(1e-9, device=device))
    expected = expected_focal(reference, labels, 0.25, 2.0, scale=1e-9)
    check(sums, logits, expected, reference, upstream=(1e9, 1e9))


@each_device
@each_dtype
@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 2), (0, 5, 3)])
def test_no_rows(device, dtype, shape):
    logits, labels = draw(shape, dtype, device)
    sums = kernels.focal_terms(logits, labels, 0.25, 2.0, None, torch.ones((), device=device))
    sums = sums + kernels.harmonized_terms(logits, labels, torch.ones(30, device=device))
    assert sums.tolist() == [0, 0]
    sums.sum().backward()
    assert logits.grad.shape == shape
    assert kernels.gradient_norm_histogram(logits, labels, 30).tolist() == [0] * 30


@each_device
def test_ignored_rows_may_hold_any_value(device):
    logits = torch.full((300, 8), torch.nan, device=device, requires_grad=True)
    labels = torch.full((300,), -1, device=device)
    sums = kernels.focal_terms(logits, labels, 0.25, 2.0, None, torch.ones((), device=device))
    sums = sums + kernels.harmonized_terms(logits, labels, torch.ones(30, device=device))
    assert sums.tolist() == [0, 0]
    sums.sum().backward()
    assert not logits.grad.any()
    assert not kernels.gradient_norm_histogram(logits, labels, 30).any()


@each_device
@pytest.mark.parametrize("label", [0, 1, 8])
def test_a_nan_logit_gives_a_nan_sum(device, label):
    logits, labels = torch.zeros(300, 8, device=device), torch.full((300,), 8, device=device)
    logits[5, 1], labels[5] = torch.nan, label
    assert kernels.focal_terms(logits, labels, 0.25, 2.0, None, torch.ones((), device=device)).isnan().any()


@each_device
def test_every_run_gives_the_same_sums_also_without_a_gradient(device):
    logits, labels = draw((2, 500, 8), torch.float32, device, seed=8)
    scale = torch.ones((), device=device)
    first = kernels.focal_terms(logits, labels, 0.25, 2.0, None, scale)
    assert torch.equal(first, kernels.focal_terms(logits, labels, 0.25, 2.0, None, scale))
    detached = kernels.focal_terms(logits.detach(), labels, 0.25, 2.0, None, scale)
    assert torch.equal(first, detached) and not detached.requires_grad
