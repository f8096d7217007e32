"""Steps that must not be taken: the loss or its gradient is no finite number, or the loss leaps."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detector.core.errors import UserError
from detector.core.torch_errors import is_out_of_memory
from detector.core.validation import NonNegativeInt, PositiveFloat, Settings
from detector.losses.base import running_mean

MOMENTUM = 0.98
SEEN_BEFORE_SPIKES = 20  # steps before a mean loss means something


class FaultSettings(Settings):
    """bad_step: what a loss or gradient that is not finite does, or a loss above spike_factor times its running mean
    (null: no such limit); out_of_memory: halve puts each batch through in parts; max_unreadable: how many images may
    fail to be read, others standing in for them."""

    bad_step: Literal["stop", "skip"] = "stop"
    spike_factor: Annotated[PositiveFloat, Field(gt=1)] | None = None
    out_of_memory: Literal["stop", "halve"] = "stop"
    max_unreadable: NonNegativeInt = 0


class Guard(nn.Module):
    """Judges steps on their device, without a host sync. Where `spike_factor` is given, a loss above so many times the
    running mean of the steps taken is no step either."""

    mean_loss: Tensor
    steps: Tensor

    def __init__(self, spike_factor: float | None):
        super().__init__()
        self.spike_factor = spike_factor
        self.register_buffer("mean_loss", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def refuses(self, loss: Tensor) -> Tensor:
        """loss, the whole step's -> 0-dim bool; the mean moves by the steps that are not refused."""
        refused = ~loss.isfinite()
        if self.spike_factor is not None:
            mean = running_mean(self.mean_loss, self.steps, loss, MOMENTUM, update=False)
            refused |= (self.steps >= SEEN_BEFORE_SPIKES) & (loss > self.spike_factor * mean)
            self.mean_loss.copy_(self.mean_loss.lerp(loss, 1 - MOMENTUM).where(~refused, self.mean_loss))
            self.steps += ~refused
        return refused


class BufferSnapshot:
    """Values of the buffers that a forward pass moves (batch norm's statistics, the losses' histograms and means), to
    be brought back where the step is not taken."""

    def __init__(self, *modules: nn.Module):
        self.buffers = [b for module in modules for b in module.buffers()]
        self.values = [b.clone() for b in self.buffers]

    def restore(self, where: Tensor | None = None) -> None:
        """Everywhere, or if the 0-dim bool `where` is true."""
        for buffer, value in zip(self.buffers, self.values, strict=True):
            buffer.copy_(value if where is None else value.where(where, buffer))


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The norms that keep statistics in training."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def inference_within_memory(images: torch.Tensor) -> Generator[None]:
    """As a context: raises UserError, with the keys to lower, where the memory does not suffice for images (B, 3, H, W)
    in any view."""
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "no memory"
    count, _, height, width = images.shape
    raise UserError(
        f"out of memory at {count} images of {width}x{height} pixels ({reason})",
        "lower evaluation.batch_size (of infer "
        "--batch-size, of predict batch_size), evaluation.scales (--scales) or data.short_side",
    )
