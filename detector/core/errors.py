"""The exceptions that end a tool early and are not bugs."""

MAX_LINE = 1000


def one_line(text: str) -> str:
    """Return the text without line breaks and control characters, and without the middle of a long text."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}"


class UserError(Exception):
    """An error in the user's input.

    Its text is one line, `problem; remedy`. Libraries raise it. Tools write the line to stderr and exit with code 2
    (see `detector.core.command`).

    Args:
        problem: the location of the error (file, line, key), and the error with the wrong value.
        remedy: the action that corrects the error. It is empty where `problem` contains the action.
    """

    def __init__(self, problem: str, remedy: str = ""):
        # the error of a loader worker arrives as one text, after the traceback of the worker
        self.problem = one_line(problem.rpartition(f"{__name__}.UserError: ")[2])
        self.remedy = one_line(remedy)
        super().__init__(self.problem, self.remedy)

    def __str__(self) -> str:
        return one_line(f"{self.problem}; {self.remedy}" if self.remedy else self.problem)


class Interrupted(Exception):
    """A signal has ended the run, and the run was saved. `exit_code` is 128 plus the number of the signal."""

    def __init__(self, exit_code: int):
        super().__init__(f"interrupted by signal {exit_code - 128}")
        self.exit_code = exit_code
