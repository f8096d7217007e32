"""Chooses the implementation of the focal kernel: an argument, else DETECTOR_KERNELS, else by the logits' device."""

import functools
import logging
import os

import torch
from torch import Tensor

from detector.errors import UserError
from detector.kernels import cpu, reference

BACKENDS = {"reference": reference.focal_terms, "cpu": cpu.focal_terms}


@functools.cache
def _log_once(backend: str, device: str) -> None:
    logging.getLogger(__name__).info("focal kernel on %s: %s", device, backend)


def _choose(logits: Tensor, backend: str | None) -> str:
    backend = backend or os.environ.get("DETECTOR_KERNELS") or ("cpu" if logits.device.type == "cpu" else "reference")
    if backend not in BACKENDS:
        raise UserError(f"focal kernel backend '{backend}' is unknown; choose one of {', '.join(BACKENDS)}")
    if backend == "cpu" and logits.device.type != "cpu":
        raise UserError(f"focal kernel backend 'cpu' was given logits on {logits.device}; choose 'reference'")
    _log_once(backend, logits.device.type)
    return backend


def focal_terms(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | None,
    gamma: float,
    scale: Tensor | float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """The focal loss's foreground and background sums, (2,), times `scale`; fp32 inside (float64 for float64 logits).

    With p_t = sigmoid(logit) where the binary target is 1 and 1 - sigmoid(logit) where it is 0, each element is
    -alpha_t (1 - p_t)^gamma log(p_t) (Lin et al. 2017, equation 5). logits (..., K); labels (...) int64: 0..K-1 makes
    that entry foreground, every other entry is background, rows of -1 do not count. `scale` (one over the normaliser)
    goes in here so that the gradient, computed with the loss, needs no second pass.
    """
    scale = torch.as_tensor(scale, device=logits.device)
    return BACKENDS[_choose(logits, backend)](logits, labels, alpha, gamma, scale)


def sigmoid_focal_loss(
    logits: Tensor, labels: Tensor, *, alpha: float | None, gamma: float, backend: str | None = None
) -> Tensor:
    """The summed focal loss, a scalar; see `focal_terms`."""
    return focal_terms(logits, labels, alpha=alpha, gamma=gamma, backend=backend).sum()
