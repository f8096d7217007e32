"""The run folder: everything a run leaves behind, and its progress on the console."""

import csv
import logging
import subprocess
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from detector.core.errors import UserError
from detector.core.files import WRITE_TEXT, csv_line, is_utf8, write_text
from detector.evaluation.metrics import Metrics

log = logging.getLogger(__name__)


def commit() -> str:
    """The git commit the code stands at, with '+' where files differ; empty outside a repository or without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # git is not installed
        return ""


class StepTable:
    """A CSV file of rows that have their `step` first, in order; one that exists goes on at `first_step`."""

    def __init__(self, file: Path, first_step: int):
        self.file = file
        self._columns: list[str] | None = None
        if first_step == 0:
            file.unlink(missing_ok=True)
        elif file.exists():
            self._drop_from(first_step)

    def _drop_from(self, first_step: int) -> None:
        """Drops rows of steps that a resumed run takes again."""
        with self.file.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            columns = list(reader.fieldnames or [])
            # a line that a killed process did not finish has too few values; it is of a step to come
            rows = [row for row in reader if None not in row.values() and int(row["step"]) < first_step]
        kept = [columns, *([row[column] for column in columns] for row in rows)] if columns else []
        write_text(self.file, "".join(map(csv_line, kept)))
        self._columns = columns or None

    def add(self, rows: list[dict]) -> None:
        """Rows of the same columns; None is an empty cell."""
        if not rows:
            return
        with self.file.open("a", newline="", **WRITE_TEXT) as file:
            if self._columns is None:
                self._columns = list(rows[0])
                file.write(csv_line(self._columns))
            file.writelines(csv_line([row.get(column) for column in self._columns]) for row in rows)


class RunFolder:
    """metrics.csv (a row a step), parts.csv (a row for each level and class of a reading of the meters), TensorBoard
    events, and a progress bar (plain lines where there is no terminal)."""

    def __init__(self, path: Path, *, num_steps: int, first_step: int):
        if not is_utf8(path):
            raise UserError(
                f"{path.absolute()}: the run folder's path is not UTF-8, which TensorBoard needs",
                "choose another --out",
            )
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._metrics = StepTable(path / "metrics.csv", first_step)
        self._parts = StepTable(path / "parts.csv", first_step)
        self._board = SummaryWriter(str(path), purge_step=first_step)
        self._num_steps = num_steps
        console = Console()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("train", total=num_steps, completed=first_step, text="")

    def __enter__(self) -> "RunFolder":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
        self._board.close()

    def record(self, rows: list[dict[str, float]]) -> None:
        """Steps in order; each row has `step` and the same columns, None where nothing was measured. A column
        `part/kind` is a level's or a class's, and goes to parts.csv: with 80 classes there are over 500 of them."""
        self._metrics.add([{name: value for name, value in row.items() if "/" not in name} for row in rows])
        for row in rows:
            self._parts.add(_by_part(row))
            # one event with all values: an event each would cost a wide row milliseconds
            values = [
                Summary.Value(tag=f"train/{name}", simple_value=value)
                for name, value in row.items()
                if name != "step" and value is not None
            ]
            self._board.file_writer.add_summary(Summary(value=values), row["step"])

    def show(self, step: int, text: str) -> None:
        """Progress after `step` steps."""
        if self._progress.disable:
            log.info("step %d/%d  %s", step, self._num_steps, text)
        else:
            self._progress.update(self._task, completed=step, text=text)

    def record_evaluation(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.numbers.items():
            self._board.add_scalar(f"val/{name}", value, step)
        self._board.flush()


def _by_part(row: dict[str, float]) -> list[dict]:
    """The columns `part/kind` of a row as a row for each part, with the digits that fp32 has."""
    parts: dict[str, dict] = {}
    for name, value in row.items():
        part, slash, kind = name.rpartition("/")
        if slash and value is not None:
            parts.setdefault(part, {"step": row["step"], "part": part})[kind] = f"{value:.7g}"
    return list(parts.values())
