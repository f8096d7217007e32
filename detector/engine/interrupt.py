"""Signals: the first SIGINT or SIGTERM ends a run after the current step, and the second ends it immediately."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from detector.core.errors import Interrupted


class Interrupt:
    """As a context: record the first SIGINT or SIGTERM. The second signal ends the process immediately.

    Attributes:
        exit_code: 128 + the number of the first signal (130 or 143), or None before a signal.
    """

    def __init__(self):
        self.exit_code: int | None = None
        self._is_immediate = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @contextmanager
    def immediately(self) -> Generator[None]:
        """As a context: raise Interrupted at the first signal, or at the start if a signal has been recorded before."""
        if self.exit_code is not None:
            raise Interrupted(self.exit_code)
        self._is_immediate = True
        yield
        self._is_immediate = False

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        for handled in self._previous:
            signal.signal(handled, signal.SIG_DFL)
        if self._is_immediate:
            raise Interrupted(self.exit_code)
