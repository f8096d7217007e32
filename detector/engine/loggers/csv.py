"""CSV files: metrics.csv has a row for each step, and parts.csv a row for each level and class of a measured step."""

import csv
from collections.abc import Mapping
from pathlib import Path

from detector.core.files import WRITE_TEXT, csv_line, write_text
from detector.engine.loggers.base import EVALUATION, LOGGERS


@LOGGERS.register("csv")
class CsvLogger:
    """Writes the values of the training steps, and none of the evaluations, which metrics.json contains.

    A name `part/kind` is the column `kind` of the row of `part` in parts.csv; with 80 classes there are over 500 such
    names. All other names are columns of metrics.csv.
    """

    def __init__(self, folder: Path, first_step: int):
        self._metrics = StepTable(folder / "metrics.csv", first_step)
        self._parts = StepTable(folder / "parts.csv", first_step)

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        values = {name: value for name, value in values.items() if not name.startswith(EVALUATION)}
        whole = {name: value for name, value in values.items() if "/" not in name}
        if whole:
            self._metrics.add([{"step": step} | whole])
        self._parts.add(_rows_of_parts(step, values))

    def close(self) -> None:
        pass


class StepTable:
    """A CSV file of rows in the order of their steps. The first column is `step`, and the first row sets the columns.

    Args:
        file: a file that exists is continued, or replaced if the first step is 0.
        first_step: the rows of this step and later steps are dropped.
    """

    def __init__(self, file: Path, first_step: int):
        self.file = file
        self._columns: list[str] | None = None
        if first_step == 0:
            file.unlink(missing_ok=True)
        elif file.exists():
            self._drop_from(first_step)

    def _drop_from(self, first_step: int) -> None:
        with self.file.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            columns = list(reader.fieldnames or [])
            # a row that a killed process did not finish has too few values, and belongs to a repeated step
            rows = [row for row in reader if None not in row.values() and int(row["step"]) < first_step]
        lines = [columns, *([row[column] for column in columns] for row in rows)] if columns else []
        write_text(self.file, "".join(map(csv_line, lines)))
        self._columns = columns or None

    def add(self, rows: list[dict]) -> None:
        """Append rows of the same columns. None is an empty cell."""
        if not rows:
            return
        with self.file.open("a", newline="", **WRITE_TEXT) as file:
            if self._columns is None:
                self._columns = list(rows[0])
                file.write(csv_line(self._columns))
            file.writelines(csv_line([row.get(column) for column in self._columns]) for row in rows)


def _rows_of_parts(step: int, values: Mapping[str, float | None]) -> list[dict]:
    """Return a row for each part that was measured, with the digits of fp32."""
    parts: dict[str, dict] = {}
    for name, value in values.items():
        part, slash, kind = name.rpartition("/")
        if slash and value is not None:
            parts.setdefault(part, {"step": step, "part": part})[kind] = f"{value:.7g}"
    return list(parts.values())
