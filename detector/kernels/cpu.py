"""Focal loss and its gradient on the CPU, block by block so that the intermediates stay in the cache.

Nearly every element is background, so a block is computed as if all were: the few foreground entries and the ignored
rows are set to -inf in the block's copy, where the background term and its gradient are exactly 0. The foreground
entries are then gathered, computed on their own and scattered into the gradient. No one-hot target, no compiler.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_ELEMENTS = 32768  # a thread; also the least that PyTorch gives a second thread


def _power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent in place; the exponents in use avoid pow()."""
    if exponent == 1:
        return x
    if exponent == 2:
        return x.mul_(x)
    if exponent == 0.5:
        return x.sqrt_()
    return x.pow_(exponent)


def _terms(signed: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Element-wise loss and d loss / d signed, where sigmoid(signed) = 1 - p_t; in new tensors."""
    miss = signed.sigmoid()
    loss = F.softplus(signed, threshold=40)
    if gamma == 0:
        return loss, miss
    slope = (1 - miss).mul_(loss).mul_(gamma).add_(miss)
    weight = _power(miss, gamma)
    return loss.mul_(weight), slope.mul_(weight)


class _Focal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, alpha: float | None, gamma: float, scale: Tensor) -> Tensor:
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        num_classes = logits.shape[-1]
        rows, labels = logits.reshape(-1, num_classes), labels.reshape(-1)
        scale = float(scale)
        foreground_weight, background_weight = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)

        hit_rows = ((labels >= 0) & (labels < num_classes)).nonzero()[:, 0]
        hits = hit_rows * num_classes + labels[hit_rows]
        ignored = (labels < 0).nonzero()[:, 0]
        # fp16 cannot hold gradients that its scaler has not yet enlarged
        grad = torch.empty(rows.shape, dtype=wide if logits.dtype == torch.float16 else logits.dtype)
        block = max(1, BLOCK_ELEMENTS * torch.get_num_threads() // max(num_classes, 1))
        starts = torch.arange(0, len(rows) + block, block)
        hit_bounds = torch.searchsorted(hit_rows, starts).tolist()
        ignored_bounds = torch.searchsorted(ignored, starts).tolist()
        background = 0.0
        for i, start in enumerate(starts[:-1].tolist()):
            signed = rows[start : start + block].to(wide, copy=True, memory_format=torch.contiguous_format)
            signed.view(-1)[hits[hit_bounds[i] : hit_bounds[i + 1]] - start * num_classes] = -torch.inf
            signed[ignored[ignored_bounds[i] : ignored_bounds[i + 1]] - start] = -torch.inf
            loss, slope = _terms(signed, gamma)
            background += loss.sum().item()
            torch.mul(slope, background_weight * scale, out=slope)
            grad[start : start + block] = slope

        loss, slope = _terms(-rows.reshape(-1)[hits].to(wide), gamma)
        grad.view(-1)[hits] = (slope * (-foreground_weight * scale)).to(grad.dtype)
        ctx.save_for_backward(grad.view(logits.shape), hits)
        ctx.dtype = logits.dtype
        sums = (loss.sum().item() * foreground_weight, background * background_weight)
        return torch.tensor(sums, dtype=wide) * scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor):
        grad, hits = ctx.saved_tensors
        foreground, background = upstream.tolist()
        if foreground != 1 or background != 1:
            hit_grad = grad.view(-1)[hits]
            grad = grad * background
            grad.view(-1)[hits] = hit_grad * foreground
        return grad.to(ctx.dtype), None, None, None, None


def focal_terms(logits: Tensor, labels: Tensor, alpha: float | None, gamma: float, scale: Tensor) -> Tensor:
    """See `detector.kernels.focal_terms`."""
    return _Focal.apply(logits, labels, alpha, gamma, scale)
