"""What ends a tool early, beside bugs."""

MAX_LINE = 1000


def one_line(text: str) -> str:
    """Without line breaks and control characters, which names in files may have; cut in the middle where long."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}"


class UserError(Exception):
    """The user's input is at fault. The message is one line: what is wrong, where, and the remedy.

    Libraries raise it; tools turn it into that line on stderr and exit code 2 (`detector.command`).
    """

    def __init__(self, message: str):
        # a loader worker's error arrives behind the worker's traceback
        super().__init__(one_line(message.rpartition(f"{__name__}.UserError: ")[2]))


class Interrupted(Exception):
    """A signal ended the run after it was saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, exit_code: int):
        super().__init__(f"interrupted by signal {exit_code - 128}")
        self.exit_code = exit_code
