"""SIGINT and SIGTERM end a run after the step at hand, so that it can be saved; a second one ends it at once."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from detector.core.errors import Interrupted


class Interrupt:
    """As a context: notes the first signal in `exit_code` (128 + its number: 130, 143) and leaves the second to the
    operating system, which ends the process."""

    def __init__(self):
        self.exit_code: int | None = None
        self._at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @contextmanager
    def at_once(self) -> Generator[None]:
        """As a context: the first signal raises Interrupted, as one that was noted before does."""
        if self.exit_code is not None:
            raise Interrupted(self.exit_code)
        self._at_once = True
        yield
        self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        for handled in self._previous:
            signal.signal(handled, signal.SIG_DFL)
        if self._at_once:
            raise Interrupted(self.exit_code)
