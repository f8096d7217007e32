"""The selection of the kernels' implementation.

The argument `backend` decides, else the environment variable DETECTOR_KERNELS, else the device of the logits.
"""

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

BACKENDS = ("reference", "cpu", "compiled", "triton")  # each is a module of this package


def _default(device: str) -> str:
    if device == "cpu":
        return "cpu"
    return "triton" if device == "cuda" and importlib.util.find_spec("triton") else "reference"


@functools.cache
def _backend(name: str, device: str) -> ModuleType:
    """Return the module of a backend that supports the device. The first call logs the choice."""
    if name not in BACKENDS:
        raise UserError(f"kernel backend '{name}' is unknown", f"choose one of {', '.join(BACKENDS)}")
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if (name == "cpu" and device != "cpu") or (name == "triton" and device != "cuda" and not is_interpreted):
        raise UserError(f"kernel backend '{name}' does not support the device {device}", f"choose '{_default(device)}'")
    try:
        module = importlib.import_module(f"detector.kernels.{name}")
    except ImportError as error:
        raise UserError(f"kernel backend '{name}': {error}", "install the package, or choose 'reference'") from None
    logging.getLogger(__name__).info("loss kernels: %s (device %s)", name, device)
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
    """Return the foreground sum and the background sum of the focal loss, times `scale`.

    An element is -alpha_t (1 - p_t)^gamma log(p_t) (Lin et al. 2017, "Focal Loss for Dense Object Detection",
    equation 5). p_t is sigmoid(logit) for the binary target 1 and 1 - sigmoid(logit) for 0.

    Args:
        logits: (..., K), of any floating dtype.
        labels: (...) int64. The element of the class 0..K-1 is foreground. All other elements are background. Rows with
            -1 do not count.
        alpha: the weight of target 1. Target 0 gets 1 - alpha. A sequence or tensor (K,) has one alpha for each class.
            None means the weight 1.
        gamma: the exponent.
        class_weight: (K,), the weight of the rows of each class. Background rows have the weight 1.
        scale: one over the normalizer, a number or a 0-dim tensor. It is an argument because the gradient is computed
            with the loss, and a later division would be a second pass over the gradient.
        backend: one of BACKENDS, or None for the default.

    Returns:
        (2,) fp32, or fp64 for fp64 logits.

    Raises:
        UserError: the backend is unknown, is not installed, or does not support the device.
        ValueError: `alpha` or `class_weight` does not have K values.
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
                f"{name} has the shape {tuple(value.shape)}; give one value for each of the {logits.shape[-1]} classes"
            )
    return _choose(logits, backend).focal_terms(logits, labels, alpha, gamma, class_weight, scale)


def sigmoid_focal_loss(
    logits: Tensor, labels: Tensor, *, alpha: float | None, gamma: float, backend: str | None = None
) -> Tensor:
    """Return the sum of the focal loss, a 0-dim tensor. The arguments are those of `focal_terms`."""
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
    """Return the foreground sum and the background sum of any element-wise formula, times `scale`.

    Args:
        formula: a function of logits (..., K) fp32 or fp64, of targets (..., K) bool, and of `extra` (..., 1), if
            given. It returns (..., K). Each element depends only on the logit at the same position. Parameters of the
            formula get no gradient.
        logits: (..., K), of any floating dtype.
        labels: (...) int64, as in `focal_terms`.
        extra: (...), one number for each row, or None.
        scale: a 0-dim tensor.
        backend: one of BACKENDS, or None for the default.

    Returns:
        (2,) fp32, or fp64 for fp64 logits.
    """
    return _choose(logits, backend).elementwise_terms(formula, logits, labels, extra, scale)


def gradient_norm_histogram(logits: Tensor, labels: Tensor, bins: int, *, backend: str | None = None) -> Tensor:
    """Count the gradient norms |p - target| in equal bins over [0, 1].

    The norms are in fp32, or in fp64 for fp64 logits. In half precision a norm of 1 would be outside the last bin.

    Args:
        logits: (..., K), of any floating dtype.
        labels: (...) int64, as in `focal_terms`. Rows with -1 do not count.
        bins: the number of bins.
        backend: one of BACKENDS, or None for the default.

    Returns:
        (bins,) int64.
    """
    return _choose(logits, backend).gradient_norm_histogram(logits, labels, bins)


def harmonized_terms(logits: Tensor, labels: Tensor, weights: Tensor, *, backend: str | None = None) -> Tensor:
    """Return the foreground sum and the background sum of cross entropy with a weight for each gradient norm.

    The weight of an element is that of the bin of its gradient norm |p - target| (Li et al. 2019, "Gradient Harmonized
    Single-stage Detector", section "GHM-C Loss").

    Args:
        logits: (..., K), of any floating dtype.
        labels: (...) int64, as in `focal_terms`.
        weights: (bins,), the weight of each bin, divided by the normalizer. They get no gradient.
        backend: one of BACKENDS, or None for the default.

    Returns:
        (2,) fp32, or fp64 for fp64 logits.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    return _choose(logits, backend).harmonized_terms(logits, labels, weights.to(wide))
