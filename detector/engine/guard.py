"""Steps that must not be taken: the loss or its gradient is not finite, or the loss is far above its mean."""

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
from detector.losses.base import corrected_mean

MOMENTUM = 0.98
MIN_STEPS = 20  # the mean of fewer losses is not reliable


class FaultSettings(Settings):
    """The `faults` section of a config.

    Attributes:
        bad_step: whether a step that must not be taken stops the run or is skipped. In this step, the loss or its
            gradient is not finite, or the loss is above `spike_factor` times its running mean.
        spike_factor: a loss above this multiple of its running mean is refused. null has no limit.
        out_of_memory: stop the run, or halve the number of images that are computed together.
        max_unreadable: the number of unreadable images that other images may replace.
    """

    bad_step: Literal["stop", "skip"] = "stop"
    spike_factor: Annotated[PositiveFloat, Field(gt=1)] | None = None
    out_of_memory: Literal["stop", "halve"] = "stop"
    max_unreadable: NonNegativeInt = 0


class Guard(nn.Module):
    """Decides on the device, without a host sync, which steps are refused.

    Args:
        spike_factor: a loss above this factor times the running mean of the losses is refused. None is no limit.
    """

    mean_loss: Tensor
    steps: Tensor

    def __init__(self, spike_factor: float | None):
        super().__init__()
        self.spike_factor = spike_factor
        self.register_buffer("mean_loss", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def restart(self) -> None:
        """Forget all losses, because the next losses are of another kind."""
        self.mean_loss.zero_()
        self.steps.zero_()

    @torch.no_grad()
    def refuses(self, loss: Tensor) -> Tensor:
        """Return whether a step with this loss, summed over its batches and ranks, is refused, as a 0-dim bool.

        A loss that is not refused updates the running mean.
        """
        refused = ~loss.isfinite()
        if self.spike_factor is not None:
            mean = corrected_mean(self.mean_loss, self.steps, MOMENTUM)
            refused |= (self.steps >= MIN_STEPS) & (loss > self.spike_factor * mean)
            self.mean_loss.copy_(self.mean_loss.lerp(loss, 1 - MOMENTUM).where(~refused, self.mean_loss))
            self.steps += ~refused
        return refused


class BufferSnapshot:
    """A copy of the buffers of modules before a step, which can be restored if the step is not taken.

    A forward pass changes the statistics of batch norms, and the histograms and means of losses.

    Args:
        modules: the modules with these buffers.
    """

    def __init__(self, *modules: nn.Module):
        self.buffers = [b for module in modules for b in module.buffers()]
        self.values = [b.clone() for b in self.buffers]

    def restore(self, condition: Tensor | None = None) -> None:
        """Restore the buffers. If the 0-dim bool `condition` is given, restore them only if it is true."""
        for buffer, value in zip(self.buffers, self.values, strict=True):
            buffer.copy_(value if condition is None else value.where(condition, buffer))


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the layers that update running statistics in training."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def inference_within_memory(images: torch.Tensor) -> Generator[None]:
    """As a context: convert an out-of-memory error to a UserError that names the keys to lower.

    Args:
        images: the images (B, 3, H, W) of the batch.

    Raises:
        UserError: the memory is too small for the batch.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    num_images, _, height, width = images.shape
    raise UserError(
        f"out of memory with {num_images} images of {width}x{height} pixels ({reason})",
        "lower evaluation.batch_size (in `infer` --batch-size, in `predict` batch_size), evaluation.scales (--scales) "
        "or data.short_side",
    )
