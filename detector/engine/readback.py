"""Numbers on their way from the device to the host."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Sent:
    about: Any
    names: list[str]
    values: Tensor
    arrived: torch.cuda.Event | None


class Readback:
    """A queue of steps' numbers. On a GPU they are read `delay` steps later, when they have long arrived, so that the
    host goes on handing out work; on a CPU at once."""

    def __init__(self, device: torch.device, delay: int | None = None):
        self.device = device
        self.delay = (2 if device.type == "cuda" else 0) if delay is None else delay
        self._sent: deque[_Sent] = deque()

    def send(self, about: Any, numbers: dict[str, Tensor]) -> None:
        """`about` comes back with the numbers (0-dim tensors)."""
        values = torch.stack([value.detach().float() for value in numbers.values()])
        arrived = None
        if self.device.type == "cuda":
            values = values.to("cpu", non_blocking=True)  # into pinned memory, which the event guards
            arrived = torch.cuda.Event()
            arrived.record()
        self._sent.append(_Sent(about, list(numbers), values, arrived))

    def receive(self, everything: bool = False) -> list[tuple[Any, dict[str, float]]]:
        """What is due, in order."""
        found = []
        while len(self._sent) > (0 if everything else self.delay):
            sent = self._sent.popleft()
            if sent.arrived is not None:
                sent.arrived.synchronize()
            found.append((sent.about, dict(zip(sent.names, sent.values.tolist(), strict=True))))
        return found
