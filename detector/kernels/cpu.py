"""The focal and the harmonized loss with their gradients on the CPU, in blocks whose intermediates stay in the cache.

Nearly every element is background, so a block is computed as if all its elements were background. In the copy of the
block, the few foreground elements and the ignored rows are set to -inf. There the background term and its gradient are
exactly 0. The foreground elements are then gathered, computed separately, and scattered into the gradient. The module
needs no one-hot target and no compiler.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.core.structures import is_foreground
from detector.kernels.reference import Formula, binary_targets, gradient_dtype, split_sums

BLOCK_ELEMENTS = 32768  # for each thread; with fewer, PyTorch does not use a second thread

Terms = Callable[[Tensor], tuple[Tensor, Tensor]]  # signed -> loss, d loss / d signed; sigmoid(signed) = 1 - p_t


def _block_rows(num_classes: int) -> int:
    return max(1, BLOCK_ELEMENTS * torch.get_num_threads() // max(num_classes, 1))


class _Blocks:
    """An iterable of the blocks of logits (..., K). A block has complete rows.

    The logits are not copied if each image (the last two dimensions) is contiguous.
    """

    def __init__(self, logits: Tensor, labels: Tensor):
        self.num_classes = logits.shape[-1]
        self.dtype = torch.promote_types(logits.dtype, torch.float32)
        is_strided = logits.ndim == 3 and not logits.is_contiguous() and logits[0].is_contiguous()
        self.runs = logits.unbind() if is_strided else [logits.reshape(-1, self.num_classes)]
        self.labels = labels.reshape(-1)
        self.fg_rows = is_foreground(self.labels, self.num_classes).nonzero()[:, 0]
        self.fg_index = self.fg_rows * self.num_classes + self.labels[self.fg_rows]  # in the flat logits
        self.ignored = (self.labels < 0).nonzero()[:, 0]
        rows = _block_rows(self.num_classes)
        self.spans = [
            (run, start, min(start + rows, len(run))) for run in self.runs for start in range(0, len(run), rows)
        ]

    def __iter__(self) -> Iterator[tuple[slice, Tensor, slice]]:
        """Yield the rows of each block, a copy of its logits, and the part of `fg_index` in the block.

        The copy is in fp32, or in fp64 for fp64 logits. It has -inf at the foreground elements and in ignored rows.
        """
        first = 0
        ends = torch.tensor([end - start for _, start, end in self.spans]).cumsum(0)
        fg_ends = torch.searchsorted(self.fg_rows, ends).tolist()
        ignored_ends = torch.searchsorted(self.ignored, ends).tolist()
        fg_start, ignored_start = 0, 0
        for (run, start, end), last, fg_end, ignored_end in zip(
            self.spans, ends.tolist(), fg_ends, ignored_ends, strict=True
        ):
            block = run[start:end].to(self.dtype, copy=True, memory_format=torch.contiguous_format)
            block.view(-1)[self.fg_index[fg_start:fg_end] - first * self.num_classes] = -torch.inf
            block[self.ignored[ignored_start:ignored_end] - first] = -torch.inf
            yield slice(first, last), block, slice(fg_start, fg_end)
            first, fg_start, ignored_start = last, fg_end, ignored_end

    def foreground(self) -> Tensor:
        """Return the logits of the foreground elements, in fp32, or in fp64 for fp64 logits."""
        of_run = self.fg_rows // max(len(self.runs[0]), 1)
        columns = self.labels[self.fg_rows]
        parts = [run[self.fg_rows[of_run == i] % len(run), columns[of_run == i]] for i, run in enumerate(self.runs)]
        return torch.cat(parts).to(self.dtype)


class _Fused(torch.autograd.Function):
    """The foreground sum and the background sum of the terms. The forward pass also computes their gradient."""

    @staticmethod
    def forward(
        ctx,
        logits: Tensor,
        labels: Tensor,
        terms: Terms,
        alpha: float | Tensor | None,
        class_weight: Tensor | None,
        scale: Tensor,
    ) -> Tensor:
        blocks = _Blocks(logits, labels)
        factor = float(scale)
        is_per_class = torch.is_tensor(alpha)
        foreground_weight: Any = 1.0 if alpha is None else alpha
        background_weight: Any = 1.0 if alpha is None else 1 - alpha
        fg_labels = blocks.labels[blocks.fg_rows]
        needs_grad = ctx.needs_input_grad[0]
        grad = torch.empty(logits.shape if needs_grad else 0, dtype=gradient_dtype(logits))
        rows = grad.view(-1, blocks.num_classes) if needs_grad else grad
        background = 0.0
        for span, signed, fg in blocks:
            loss, slope = terms(signed)
            for part in (loss, slope):
                if is_per_class:
                    part.mul_(background_weight)
                if class_weight is not None:
                    part[blocks.fg_rows[fg] - span.start] *= class_weight[fg_labels[fg], None]
            background += loss.sum().item()
            if needs_grad:
                torch.mul(slope, factor if is_per_class else background_weight * factor, out=slope)
                rows[span] = slope

        loss, slope = terms(-blocks.foreground())
        weight: Any = foreground_weight[fg_labels] if is_per_class else foreground_weight
        if class_weight is not None:
            weight = weight * class_weight[fg_labels]
        if needs_grad:
            grad.view(-1)[blocks.fg_index] = (slope * (weight * -factor)).to(grad.dtype)
        ctx.save_for_backward(grad, blocks.fg_index)
        ctx.dtype = logits.dtype
        sums = ((loss * weight).sum().item(), background if is_per_class else background * background_weight)
        return torch.tensor(sums, dtype=blocks.dtype) * factor

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        grad, fg_index = ctx.saved_tensors
        foreground, background = upstream.tolist()
        if foreground != 1 or background != 1:
            fg_grad = grad.view(-1)[fg_index]
            grad = grad * background
            grad.view(-1)[fg_index] = fg_grad * foreground
        return grad.to(ctx.dtype), None, None, None, None, None


def _power(x: Tensor, exponent: float) -> Tensor:
    """Compute x ** exponent in place. The usual exponents avoid the slow pow()."""
    if exponent == 1:
        return x
    if exponent == 2:
        return x.mul_(x)
    if exponent == 0.5:
        return x.sqrt_()
    return x.pow_(exponent)


def focal_terms(
    logits: Tensor,
    labels: Tensor,
    alpha: float | Tensor | None,
    gamma: float,
    class_weight: Tensor | None,
    scale: Tensor,
) -> Tensor:
    """See `detector.kernels.focal_terms`."""

    def terms(signed: Tensor) -> tuple[Tensor, Tensor]:
        miss = signed.sigmoid()
        loss = F.softplus(signed, threshold=40)
        if gamma == 0:
            return loss, miss
        slope = (1 - miss).mul_(loss).mul_(gamma).add_(miss)
        weight = _power(miss, gamma)
        return loss.mul_(weight), slope.mul_(weight)

    return _Fused.apply(logits, labels, terms, alpha, class_weight, scale)


class _Elementwise(torch.autograd.Function):
    """The sums of any element-wise formula. Autograd inside each block gives the gradient."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, extra: Tensor | None, formula: Formula, scale: Tensor) -> Tensor:
        num_classes = logits.shape[-1]
        wide = torch.promote_types(logits.dtype, torch.float32)
        needs_grad = ctx.needs_input_grad[0]
        grad = torch.empty(logits.shape if needs_grad else 0, dtype=gradient_dtype(logits))
        rows, labels = logits.reshape(-1, num_classes), labels.reshape(-1).int()
        extra = None if extra is None else extra.reshape(-1, 1)
        sums = torch.zeros(2, dtype=torch.float64)
        block = _block_rows(num_classes)
        for start in range(0, len(rows), block):
            span = slice(start, start + block)
            with torch.set_grad_enabled(needs_grad):
                x = rows[span].detach().to(wide).requires_grad_()
                targets = binary_targets(labels[span], num_classes)
                elements = formula(x, targets, *([] if extra is None else [extra[span]]))
                block_sums = split_sums(elements, targets, labels[span])
                if needs_grad:
                    (slope,) = torch.autograd.grad(block_sums.sum(), x)
                    grad.view(-1, num_classes)[span] = slope.mul_(scale)
            sums += block_sums.detach()
        ctx.save_for_backward(grad, labels.view(logits.shape[:-1]))
        ctx.dtype = logits.dtype
        return sums.to(wide) * scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        grad, labels = ctx.saved_tensors
        if (upstream != 1).any():
            grad = grad * torch.where(binary_targets(labels, grad.shape[-1]), upstream[0], upstream[1])
        return grad.to(ctx.dtype), None, None, None, None


def elementwise_terms(formula: Formula, logits: Tensor, labels: Tensor, extra: Tensor | None, scale: Tensor) -> Tensor:
    """See `detector.kernels.elementwise_terms`."""
    return _Elementwise.apply(logits, labels, extra, formula, scale)


def _bins(norms: Tensor, bins: int) -> Tensor:
    """Return the bin 0..bins of each norm in int32, which is the fastest. A norm of 1 has the bin `bins`."""
    return (norms * bins).nan_to_num_(0).int()


def gradient_norm_histogram(logits: Tensor, labels: Tensor, bins: int) -> Tensor:
    """See `detector.kernels.gradient_norm_histogram`."""
    blocks = _Blocks(logits.detach(), labels)
    counts = torch.bincount(_bins((-blocks.foreground()).sigmoid_(), bins), minlength=bins + 1)
    for _, signed, _ in blocks:
        counts += torch.bincount(_bins(signed.sigmoid_(), bins).view(-1), minlength=bins + 1)
    counts[0] -= len(blocks.fg_index) + len(blocks.ignored) * blocks.num_classes  # they were -inf
    counts[-2] += counts[-1]
    return counts[:-1]


def harmonized_terms(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """See `detector.kernels.harmonized_terms`."""
    bins = len(weights)
    table = torch.cat((weights, weights[-1:]))

    def terms(signed: Tensor) -> tuple[Tensor, Tensor]:
        miss = signed.sigmoid()
        weight = table.index_select(0, _bins(miss, bins).view(-1)).view_as(miss)
        return F.softplus(signed, threshold=40).mul_(weight), miss.mul_(weight)

    return _Fused.apply(logits, labels, terms, None, None, torch.ones(()))
