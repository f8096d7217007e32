"""Focal loss and GHM-C as Triton kernels. The memory bandwidth limits them.

Each logit is read once, and each gradient is written once. The memory traffic of a logit is at least:

- 8 bytes in fp32 and 4 bytes in bf16, for a loss with its gradient;
- half of that for a loss alone, and for the histogram;
- 6 bytes in fp16, because the gradient is stored in fp32 until the loss scaler multiplies it. The backward pass then
  needs 6 bytes more.

In other dtypes the backward pass needs nothing while its upstream gradients are 1. For the targets, the kernels read
one label for each row.

A program computes BLOCK_BYTES of consecutive logits of an image. The logits of a group share a row, and are loaded 16
bytes at a time. The values of the row (label, mask, division by K) are computed once for each group, by the thread of
the group. An element needs no branch and no division. Logarithms have base 2, because the hardware instructions do.
Each program computes a partial sum, and the order of the partial sums is fixed, so the result is the same in every run.
Nothing waits for the device.

With TRITON_INTERPRET=1 the same kernels take tensors on the CPU. Without Triton the import fails.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from detector.kernels.reference import elementwise_terms, gradient_dtype

__all__ = ["elementwise_terms", "focal_terms", "gradient_norm_histogram", "harmonized_terms"]

BLOCK_BYTES = 8192  # logits of a program; 64 bytes for each thread
WARPS = 4
MAX_PROGRAMS = 8192  # of a kernel that loops: many for each multiprocessor, but few without work
MAX_IMAGES = 65535  # the limit of the second dimension of a CUDA grid
PLAIN = ["rows", "logit_stride", "label_stride"]  # no separate kernel for 1 or multiples of 16
LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2))


@triton.jit
def _groups(labels, image, start, size, label_stride, K: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Return the groups of the block that begins at `start`, in tensors (BLOCK / GROUP, 1).

    The first is the offset from `start`. The second is whether the group is inside the `size` logits of the image. The
    others are the column of the group's first logit, and the label (-1 outside).
    """
    group = tl.arange(0, BLOCK // GROUP)[:, None] * GROUP
    inside = group < tl.minimum(size - start, BLOCK).to(tl.int32)
    position = (start % K).to(tl.int32) + group
    label = tl.load(labels + image * label_stride + start // K + position // K, mask=inside, other=-1).to(tl.int32)
    return group, inside, position % K, label


@triton.jit
def _log2_1p(u):
    """Return log2(1 + u) for 0 <= u <= 1, with a relative error of 2e-7 also for small u, and exactly 1 at 1."""
    if u.dtype == tl.float64:
        v = 1 + u
        return tl.log2(v) + (u - (v - 1)) / v * LOG2_E  # the second term corrects the rounding of 1 + u
    # minimax polynomial of log2(1 + u) / u with an error of 3e-8: cheaper than a logarithm and the correction above
    p = 0.007409379642 * u - 0.04203978085
    p = p * u + 0.1120516375
    p = p * u - 0.1964827507
    p = p * u + 0.2753642178
    p = p * u - 0.3583433016
    p = p * u + 0.4806854876
    p = p * u - 0.7213398845
    p = p * u + 1.442694995
    return p * u


@triton.jit
def _logs(signed):
    """Return -log2(p_t) and log2(1 - p_t), where sigmoid(signed) = 1 - p_t.

    Both are finite for every finite logit, and accurate to their last bits.
    """
    bits = signed * LOG2_E
    tail = _log2_1p(tl.exp2(-tl.abs(bits)))
    return tl.maximum(bits, 0.0) + tail, tl.minimum(bits, 0.0) - tail


@triton.jit
def _bin(norm, BINS: tl.constexpr):
    return tl.minimum(norm * BINS, BINS - 1.0).to(tl.int32)


@triton.jit(do_not_specialize=PLAIN)
def _terms_kernel(
    logits,
    labels,
    gradient,  # contiguous, or None for no gradient
    sums,  # (2, programs)
    scale,  # () or None
    alpha,  # (K,) or None
    class_weight,  # (K,) or None
    bin_weights,  # (BINS,), or None for the focal loss
    rows,
    logit_stride,
    label_stride,
    ALPHA: tl.constexpr,
    GAMMA: tl.constexpr,
    BINS: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the partial sums and the gradient. The grid is (blocks of an image, images).

    `rows` is the number of rows of an image. The strides, in rows, are the distances from one image to the next.
    """
    wide: tl.constexpr = sums.dtype.element_ty
    image, start = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64) * BLOCK
    size = rows.to(tl.int64) * K
    group, inside, column, label = _groups(labels, image, start, size, label_stride, K, GROUP, BLOCK)
    is_valid = label >= 0
    lane = tl.arange(0, GROUP)[None, :]
    target = label - column == lane
    logit = tl.load(logits + image * logit_stride * K + start + (group + lane), mask=is_valid, other=0).to(wide)
    loss, log_miss = _logs(tl.where(target, -logit, logit))
    miss = tl.exp2(log_miss)

    weight = tl.where(is_valid, 1.0, 0.0).to(wide)
    if scale is not None:
        weight *= tl.load(scale).to(wide)
    if class_weight is not None:
        weight *= tl.load(class_weight + label, mask=is_valid & (label < K), other=1).to(wide)
    # negative for targets, whose logit has its sign inverted: the code below then needs no other sign and no mask
    if ALPHA is not None:
        weight = tl.where(target, -ALPHA * weight, (1 - ALPHA) * weight)
    elif alpha is not None:
        column_alpha = tl.load(alpha + (column + lane)).to(wide)
        weight *= tl.where(target, -column_alpha, 1 - column_alpha)
    else:
        weight = tl.where(target, -weight, weight)

    if bin_weights is not None:
        weight *= tl.load(bin_weights + _bin(miss, BINS)).to(wide)
        slope = miss
    elif GAMMA == 0:
        slope = miss
    else:
        if GAMMA == 1:
            weight *= miss
        elif GAMMA == 2:
            weight *= miss * miss
        else:
            weight *= tl.exp2(GAMMA * log_miss)
        slope = tl.exp2(-loss) * (GAMMA * LN_2) * loss + miss
    if gradient is not None:
        tl.store(gradient + image * size + start + (group + lane), weight * slope, mask=inside)
    term = weight * loss
    background = tl.maximum(term, 0.0, propagate_nan=tl.PropagateNan.ALL)  # a NaN must reach one of the sums
    position = sums + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(position, tl.sum(tl.minimum(term, 0.0)) * -LN_2)
    tl.store(position + tl.num_programs(0) * tl.num_programs(1), tl.sum(background) * LN_2)


@triton.jit(do_not_specialize=PLAIN)
def _scale_kernel(
    gradient,
    out,
    labels,
    upstream,
    upstream_stride,
    rows,
    label_stride,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute out = gradient * upstream, with upstream[0] for the foreground and upstream[1] for the background.

    `gradient` and `out` are contiguous.
    """
    image, start = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64) * BLOCK
    size = rows.to(tl.int64) * K
    foreground, background = tl.load(upstream), tl.load(upstream + upstream_stride)
    end = size
    if gradient.dtype == out.dtype:  # then they are the same tensor
        end = tl.where((foreground == 1) & (background == 1), 0, size)
    while start < end:
        group, inside, column, label = _groups(labels, image, start, size, label_stride, K, GROUP, BLOCK)
        lane = tl.arange(0, GROUP)[None, :]
        position = image * size + start + (group + lane)
        slope = tl.load(gradient + position, mask=inside).to(foreground.dtype)
        tl.store(out + position, slope * tl.where(label - column == lane, foreground, background), mask=inside)
        start += tl.num_programs(0).to(tl.int64) * BLOCK


@triton.jit(do_not_specialize=PLAIN)
def _histogram_kernel(
    logits,
    labels,
    counts,  # (programs, SLOTS)
    rows,
    logit_stride,
    label_stride,
    BINS: tl.constexpr,
    SLOTS: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count the gradient norms. The grid is (programs that share the blocks of an image, images).

    Rows that do not count go to the slot BINS.
    """
    wide: tl.constexpr = tl.float64 if logits.dtype.element_ty == tl.float64 else tl.float32
    image, start = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64) * BLOCK
    size = rows.to(tl.int64) * K
    total = tl.zeros((SLOTS,), tl.int32)
    while start < size:
        group, inside, column, label = _groups(labels, image, start, size, label_stride, K, GROUP, BLOCK)
        lane = tl.arange(0, GROUP)[None, :]
        logit = tl.load(logits + image * logit_stride * K + start + (group + lane), mask=label >= 0, other=0).to(wide)
        loss, log_miss = _logs(tl.where(label - column == lane, -logit, logit))
        index = tl.where(label >= 0, _bin(tl.exp2(log_miss), BINS), BINS)
        total += tl.histogram(tl.ravel(index), SLOTS)
        start += tl.num_programs(0).to(tl.int64) * BLOCK
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(counts + program.to(tl.int64) * SLOTS + tl.arange(0, SLOTS), total)


def _dense(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.contiguous()


def _as_images(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (B, A, K) and labels (B, A) whose images are contiguous.

    Between two images there may be a gap of complete rows. Other layouts become a single image, with a copy if needed.
    """
    num_classes = logits.shape[-1]
    is_strided = logits.ndim == 3 and logits.stride()[1:] == (num_classes, 1) and labels.stride(1) == 1
    is_strided = is_strided and logits.stride(0) % num_classes == 0 and len(logits) <= MAX_IMAGES
    if not is_strided or (logits.is_contiguous() and labels.is_contiguous()):
        return logits.contiguous().view(1, -1, num_classes), labels.contiguous().view(1, -1)
    return logits, labels


def _grid(logits: Tensor, max_programs: int | None = None) -> tuple[int, int]:
    """Return (programs of an image, images): one program for each block, and at most `max_programs`."""
    images, rows, num_classes = logits.shape
    blocks = -(-rows * num_classes // (BLOCK_BYTES // logits.element_size()))
    return min(blocks, max_programs or blocks), images


def _launch(kernel: Any, grid: tuple[int, int], shaped: Tensor, labels: Tensor, **arguments: Any) -> None:
    """Start `kernel` on images with the shape and the element size of `shaped`."""
    _, rows, num_classes = shaped.shape
    if math.prod(grid) == 0:
        return
    with torch.accelerator.device_index(shaped.device.index):  # Triton starts kernels on the current device
        kernel[grid](
            labels=labels,
            label_stride=labels.stride(0),
            rows=rows,
            K=num_classes,
            GROUP=math.gcd(num_classes, 16 // shaped.element_size()),
            BLOCK=BLOCK_BYTES // shaped.element_size(),
            num_warps=WARPS,
            enable_fp_fusion=True,
            **arguments,
        )


def _sums(
    logits: Tensor,
    labels: Tensor,
    gradient: Tensor | None,
    *,
    scale: Tensor | None = None,
    alpha: float | Tensor | None = None,
    gamma: float = 0.0,
    class_weight: Tensor | None = None,
    bin_weights: Tensor | None = None,
) -> Tensor:
    """Return the foreground sum and the background sum, (2,), and fill `gradient`."""
    grid = _grid(logits)
    sums = logits.new_empty((2, math.prod(grid)), dtype=torch.promote_types(logits.dtype, torch.float32))
    is_per_class = torch.is_tensor(alpha)
    _launch(
        _terms_kernel,
        grid,
        logits,
        labels,
        logits=logits,
        logit_stride=logits.stride(0) // logits.shape[-1],
        gradient=gradient,
        sums=sums,
        scale=scale,
        alpha=_dense(alpha) if is_per_class else None,
        ALPHA=None if is_per_class else alpha,
        GAMMA=gamma,
        class_weight=_dense(class_weight),
        bin_weights=_dense(bin_weights),
        BINS=0 if bin_weights is None else len(bin_weights),
    )
    return sums.sum(dim=1)


class _Terms(torch.autograd.Function):
    """`sums(logits, labels, gradient)`, with the gradient that the forward pass fills."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, sums: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> Tensor:
        ctx.sums = sums
        ctx.save_for_backward(logits, labels)
        ctx.gradient = _Terms.empty_gradient(logits) if ctx.needs_input_grad[0] else None
        return sums(logits, labels, ctx.gradient)

    @staticmethod
    def empty_gradient(logits: Tensor) -> Tensor:
        return logits.new_empty(logits.shape, dtype=gradient_dtype(logits))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        logits, labels = ctx.saved_tensors
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # a second backward pass; the first one returned the stored gradient
            gradient = _Terms.empty_gradient(logits)
            ctx.sums(logits, labels, gradient)
        out = gradient if gradient.dtype == logits.dtype else torch.empty_like(gradient, dtype=logits.dtype)
        _launch(
            _scale_kernel,
            _grid(out, MAX_PROGRAMS),
            out,
            labels,
            gradient=gradient,
            out=out,
            upstream=upstream,
            upstream_stride=upstream.stride(0),
        )
        return out, None, None


def focal_terms(
    logits: Tensor,
    labels: Tensor,
    alpha: float | Tensor | None,
    gamma: float,
    class_weight: Tensor | None,
    scale: Tensor,
) -> Tensor:
    """See `detector.kernels.focal_terms`."""
    sums = functools.partial(_sums, scale=scale, alpha=alpha, gamma=gamma, class_weight=class_weight)
    return _Terms.apply(*_as_images(logits, labels), sums)


def harmonized_terms(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """See `detector.kernels.harmonized_terms`."""
    return _Terms.apply(*_as_images(logits, labels), functools.partial(_sums, bin_weights=weights))


@torch.no_grad()
def gradient_norm_histogram(logits: Tensor, labels: Tensor, bins: int) -> Tensor:
    """See `detector.kernels.gradient_norm_histogram`."""
    logits, labels = _as_images(logits, labels)
    grid = _grid(logits, MAX_PROGRAMS)
    slots = max(32, triton.next_power_of_2(bins + 1))  # at least the width of a warp, and one more than the bins
    counts = labels.new_empty((math.prod(grid), slots), dtype=torch.int32)
    _launch(
        _histogram_kernel,
        grid,
        logits,
        labels,
        logits=logits,
        logit_stride=logits.stride(0) // logits.shape[-1],
        counts=counts,
        BINS=bins,
        SLOTS=slots,
    )
    return counts.sum(dim=0)[:bins]
