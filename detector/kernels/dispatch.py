"""Chooses the implementation of the kernels: an argument, else DETECTOR_KERNELS, else by the logits' device."""

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from detector.core.errors import UserError

BACKENDS = ("reference", "cpu", "compiled", "triton")  # each a module of this package


def _default(device: str) -> str:
    if device == "cpu":
        return "cpu"
    return "triton" if device == "cuda" and importlib.util.find_spec("triton") else "reference"


@functools.cache
def _backend(name: str, device: str) -> ModuleType:
    """The module behind a name, known to serve the device; logged the first time."""
    if name not in BACKENDS:
        raise UserError(f"kernel backend '{name}' is unknown", f"choose one of {', '.join(BACKENDS)}")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if (name == "cpu" and device != "cpu") or (name == "triton" and device != "cuda" and not interpreted):
        raise UserError(f"kernel backend '{name}' was given logits on {device}", f"choose '{_default(device)}'")
    try:
        module = importlib.import_module(f"detector.kernels.{name}")
    except ImportError as error:
        raise UserError(f"kernel backend '{name}': {error}", "install it, or choose 'reference'") from None
    logging.getLogger(__name__).info("loss kernels on %s: %s", device, name)
    return module


def _choose(logits: Tensor, name: str | None) -> ModuleType:
    device = logits.device.type
    return _backend(name or os.environ.get("DETECTOR_KERNELS") or _default(device), device)


def focal_terms(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | Sequence[float] | Tensor | None,
    gamma: float,
    class_weight: Tensor | None = None,
    scale: Tensor | float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """The focal loss's foreground and background sums, (2,), times `scale`; fp32 inside (float64 for float64 logits).

    With p_t = sigmoid(logit) where the binary target is 1 and 1 - sigmoid(logit) where it is 0, each element is
    -alpha_t (1 - p_t)^gamma log(p_t) (Lin et al. 2017, equation 5). logits (..., K); labels (...) int64: 0..K-1 makes
    that entry foreground, every other entry is background, rows of -1 do not count. alpha may be one for each class;
    class_weight (K,) multiplies whole rows by their label's weight, background rows by 1. `scale` (one over the
    normaliser) goes in here so that the gradient, computed with the loss, needs no second pass.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    if not torch.is_tensor(scale):  # torch.as_tensor would copy it to the device, and wait
        scale = torch.full((), scale, device=logits.device, dtype=wide)
    scale = scale.to(wide)
    if alpha is not None and not isinstance(alpha, float | int):
        alpha = torch.as_tensor(alpha, device=logits.device, dtype=wide)
    if class_weight is not None:
        class_weight = class_weight.to(wide)
    for name, value in (("alpha", alpha), ("class_weight", class_weight)):
        if torch.is_tensor(value) and value.shape != logits.shape[-1:]:
            raise ValueError(
                f"{name} has the shape {tuple(value.shape)}; give one value for each of {logits.shape[-1]} classes"
            )
    return _choose(logits, backend).focal_terms(logits, labels, alpha, gamma, class_weight, scale)


def sigmoid_focal_loss(
    logits: Tensor, labels: Tensor, *, alpha: float | None, gamma: float, backend: str | None = None
) -> Tensor:
    """The summed focal loss, a scalar; see `focal_terms`."""
    return focal_terms(logits, labels, alpha=alpha, gamma=gamma, backend=backend).sum()


def elementwise_terms(
    formula: Callable[..., Tensor],
    logits: Tensor,
    labels: Tensor,
    extra: Tensor | None = None,
    *,
    scale: Tensor,
    backend: str | None = None,
) -> Tensor:
    """The foreground and background sums, (2,), times `scale`, of any `formula(logits, targets)`, or
    `formula(logits, targets, extra)`, whose elements (..., K) depend on the logit in their place alone: logits fp32 or
    fp64, targets bool; extra (...) reaches it as (..., 1). The formula's own parameters get no gradient."""
    return _choose(logits, backend).elementwise_terms(formula, logits, labels, extra, scale)


def gradient_norm_histogram(logits: Tensor, labels: Tensor, bins: int, *, backend: str | None = None) -> Tensor:
    """How many elements of the rows that are not ignored have their gradient norm |p - target| in each of `bins` equal
    bins over [0, 1]: (bins,) int64. In half precision a norm of 1 would leave the last bin, so fp32 inside."""
    return _choose(logits, backend).gradient_norm_histogram(logits, labels, bins)


def harmonised_terms(logits: Tensor, labels: Tensor, weights: Tensor, *, backend: str | None = None) -> Tensor:
    """The foreground and background sums, (2,), of cross entropy weighted by the element's bin of |p - target|:
    weights (bins,) are constants, with the normaliser in them (Li et al. 2019, equation 9)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return _choose(logits, backend).harmonised_terms(logits, labels, weights.to(wide))
