"""What ends a tool early, beside bugs."""

MAX_LINE = 1000


def one_line(text: str) -> str:
    """Without line breaks and control characters, which names in files may have; cut in the middle where long."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}"


class UserError(Exception):
    """The user's input is at fault: `problem` says what is wrong and where, `remedy` what to do (empty where the
    problem says it). As text it is one line, `problem; remedy`.

    Libraries raise it; tools turn it into that line on stderr and exit code 2 (`detector.core.command`).
    """

    def __init__(self, problem: str, remedy: str = ""):
        # a loader worker's error arrives as one text behind the worker's traceback
        self.problem = one_line(problem.rpartition(f"{__name__}.UserError: ")[2])
        self.remedy = one_line(remedy)
        super().__init__(self.problem, self.remedy)

    def __str__(self) -> str:
        return one_line(f"{self.problem}; {self.remedy}" if self.remedy else self.problem)


class Interrupted(Exception):
    """A signal ended the run after it was saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, exit_code: int):
        super().__init__(f"interrupted by signal {exit_code - 128}")
        self.exit_code = exit_code
