"""The run folder, its loggers, and the progress bar of the run on the console."""

import logging
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from detector.core.registry import Part
from detector.engine.loggers.base import EVALUATION, Logger
from detector.evaluation.metrics import Metrics

log = logging.getLogger(__name__)


def commit() -> str:
    """Return the git commit of the code, with `+` if files differ from it. Without git or a repository it is empty."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # git is not installed
        return ""


class RunFolder:
    """A run folder with its loggers. It shows a progress bar on a terminal, and plain lines elsewhere.

    Args:
        path: the folder, which is created if it does not exist.
        num_steps: the number of steps of the whole run.
        first_step: the first step that this process takes; above 0 in a resumed run.
        loggers: the loggers that the config chooses.
    """

    def __init__(self, path: Path, *, num_steps: int, first_step: int, loggers: Sequence[Part[Logger]]):
        path.mkdir(parents=True, exist_ok=True)
        self._loggers: list[Logger] = []
        self._num_steps = num_steps
        with ExitStack() as opened:
            for part in loggers:
                self._loggers.append(part.build({"folder": path, "first_step": first_step}))
                opened.callback(self._loggers[-1].close)
            self._opened = opened.pop_all()
        console = Console()
        self._progress = Progress(
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            expand=True,  # in a narrow terminal, only the text is cut
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("train", total=num_steps, completed=first_step, text="")

    def __enter__(self) -> "RunFolder":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
        self._opened.close()

    def record(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log training steps in ascending order. See `Logger.log`.

        Args:
            rows: the `step` and the values of each step. All rows have the same names.
        """
        for row in rows:
            values = {name: value for name, value in row.items() if name != "step"}
            for logger in self._loggers:
                logger.log(row["step"], values)

    def show(self, step: int, text: str) -> None:
        """Show the progress.

        Args:
            step: the number of completed steps.
            text: the measurements of the last steps.
        """
        if self._progress.disable:
            log.info("step %d/%d  %s", step, self._num_steps, text)
        else:
            self._progress.update(self._task, completed=step, text=text)

    def record_evaluation(self, step: int, metrics: Metrics) -> None:
        """Log the numbers of an evaluation.

        Args:
            step: the number of completed steps.
            metrics: the metrics.
        """
        values = {f"{EVALUATION}{name}": value for name, value in metrics.numbers.items()}
        for logger in self._loggers:
            logger.log(step, values)
