"""The transfer of the numbers of a step from the device to the host."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Transfer:
    tag: Any
    names: list[str]
    values: Tensor
    arrival: torch.cuda.Event | None


class Readback:
    """A queue of the numbers of steps.

    On a GPU, the host reads the numbers of a step `delay` steps later. By then they have arrived, so the host does not
    wait for the device. On a CPU, the host reads them immediately.

    Args:
        device: the device of the numbers.
        delay: in steps. The default is 2 on a GPU and 0 on a CPU.
    """

    def __init__(self, device: torch.device, delay: int | None = None):
        self.device = device
        self.delay = (2 if device.type == "cuda" else 0) if delay is None else delay
        self._queue: deque[_Transfer] = deque()

    def send(self, tag: Any, numbers: dict[str, Tensor]) -> None:
        """Start the transfer of the numbers of a step.

        Args:
            tag: any object. `receive` returns it with the numbers.
            numbers: 0-dim tensors on the device.
        """
        values = torch.stack([value.detach().float() for value in numbers.values()])
        arrival = None
        if self.device.type == "cuda":
            values = values.to("cpu", non_blocking=True)  # valid only after the event
            arrival = torch.cuda.Event()
            arrival.record()
        self._queue.append(_Transfer(tag, list(numbers), values, arrival))

    def receive(self, everything: bool = False) -> list[tuple[Any, dict[str, float]]]:
        """Return the tag and numbers of each step that is due, in order. `everything` makes all steps due."""
        received = []
        while len(self._queue) > (0 if everything else self.delay):
            transfer = self._queue.popleft()
            if transfer.arrival is not None:
                transfer.arrival.synchronize()
            received.append((transfer.tag, dict(zip(transfer.names, transfer.values.tolist(), strict=True))))
        return received
