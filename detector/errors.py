"""What ends a tool early, beside bugs."""


class UserError(Exception):
    """The user's input is at fault. The message is one line: what is wrong, where, and the remedy.

    Libraries raise it; tools turn it into that line on stderr and exit code 2 (`detector.command`).
    """


class Interrupted(Exception):
    """A signal ended the run after it was saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, exit_code: int):
        super().__init__(f"interrupted by signal {exit_code - 128}")
        self.exit_code = exit_code
