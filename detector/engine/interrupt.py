"""SIGINT and SIGTERM end a run after the step at hand, so that it can be saved."""

import signal
from types import FrameType


class Interrupt:
    """As a context: notes the first signal in `exit_code` (128 + its number: 130, 143), leaves the second to Python."""

    def __init__(self):
        self.exit_code: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
