"""CSV files: a row for each step (metrics.csv), each level and class of a step (parts.csv), and each evaluation."""

import csv
from collections.abc import Mapping
from pathlib import Path

from detector.core.files import WRITE_TEXT, csv_line, write_text
from detector.engine.loggers.base import EVALUATION, LOGGERS


@LOGGERS.register("csv")
class CsvLogger:
    """Write the values of the training steps and of the evaluations.

    The values of an evaluation are a row of evaluations.csv. For a training step, a name `part/kind` is the column
    `kind` of the row of `part` in parts.csv; with 80 classes a step has over 500 of these names. All other names are
    columns of metrics.csv.
    """

    def __init__(self, folder: Path, first_step: int):
        self._metrics = StepTable(folder / "metrics.csv", first_step)
        self._parts = StepTable(folder / "parts.csv", first_step)
        # an evaluation follows its step: the evaluation after the last step before `first_step` stays
        self._evaluations = StepTable(folder / "evaluations.csv", first_step + 1 if first_step else 0)

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Append the rows of a training step, or the row of an evaluation."""
        if all(name.startswith(EVALUATION) for name in values):
            self._evaluations.drop_from(step)  # a resumed run repeats an evaluation that it did not finish
            self._evaluations.add([{"step": step} | {k.removeprefix(EVALUATION): v for k, v in values.items()}])
            return
        whole = {name: value for name, value in values.items() if "/" not in name}
        if whole:
            self._metrics.add([{"step": step} | whole])
        self._parts.add(_rows_of_parts(step, values))

    def close(self) -> None:
        """Do nothing. The files are open only during `log`."""


class StepTable:
    """A CSV file of rows in the order of their steps. The first column is `step`. The first row defines the columns.

    Args:
        file: the path. An existing file is continued, or replaced if `first_step` is 0.
        first_step: the rows of this step and of later steps are dropped.
    """

    def __init__(self, file: Path, first_step: int):
        self.file = file
        self._columns: list[str] | None = None
        if first_step == 0:
            file.unlink(missing_ok=True)
        else:
            self.drop_from(first_step)

    def drop_from(self, first_step: int) -> None:
        """Drop the rows of this step and later steps."""
        if not self.file.exists():
            return
        with self.file.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            columns = list(reader.fieldnames or [])
            # an incomplete row of a killed process has too few values; the resumed run repeats its step
            rows = [row for row in reader if None not in row.values() and int(row["step"]) < first_step]
        lines = [columns, *([row[column] for column in columns] for row in rows)] if columns else []
        write_text(self.file, "".join(map(csv_line, lines)))
        self._columns = columns or None

    def add(self, rows: list[dict]) -> None:
        """Append rows with the columns of the file. None becomes an empty cell."""
        if not rows:
            return
        with self.file.open("a", newline="", **WRITE_TEXT) as file:
            if self._columns is None:
                self._columns = list(rows[0])
                file.write(csv_line(self._columns))
            file.writelines(csv_line([row.get(column) for column in self._columns]) for row in rows)


def _rows_of_parts(step: int, values: Mapping[str, float | None]) -> list[dict]:
    """Return a row for each measured part. The values have seven significant digits, as in fp32."""
    parts: dict[str, dict] = {}
    for name, value in values.items():
        part, slash, kind = name.rpartition("/")
        if slash and value is not None:
            parts.setdefault(part, {"step": step, "part": part})[kind] = f"{value:.7g}"
    return list(parts.values())
