"""The run folder: everything a run leaves behind, and its progress on the console."""

import csv
import json
import logging
import math
import os
import subprocess
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from detector.engine.checkpoint import generations, newest_whole
from detector.errors import UserError

log = logging.getLogger(__name__)
LAST = Path("checkpoints") / "last.pt"


def write_text(path: Path, text: str) -> None:
    """Replace `path` whole: a reader sees the old text or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, value: object) -> None:
    """Strict JSON; NaN (no ground truth) becomes null."""
    write_text(path, json.dumps(_without_nan(value), indent=1, allow_nan=False))


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def commit() -> str:
    """The git commit the code stands at, with '+' where files differ; empty outside a repository."""
    answer = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip()


def choose_folder(name: str, out: Path | None, resume: str | None) -> tuple[Path, Path | None]:
    """The run folder, and the checkpoint to continue from.

    `out` defaults to runs/<name>/<time>. `resume` is a checkpoint's path, or `auto`: the newest whole checkpoint in
    `out`, or without `out` that of the newest run of this name; where there is none, not even a damaged one, the run
    starts afresh. A run goes on in its own folder, and a folder that holds another is refused.
    """
    if resume is not None and resume != "auto":
        checkpoint = Path(resume)
        own = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None
        if out is not None and own is None:
            _refuse_a_run(out)
        elif out is not None and out.resolve() != own.resolve():
            raise UserError(f"--out {out}: {resume} belongs to the run {own}, which goes on there; leave --out away")
        return out or own or _new_folder(name), checkpoint
    if resume == "auto":
        folders = [out] if out else sorted((Path("runs") / name).glob("*"), reverse=True)
        for folder in folders:
            if checkpoint := newest_whole(folder / LAST):
                return folder, checkpoint
            if damaged := generations(folder / LAST):
                names = ", ".join(path.name for path in damaged)
                raise UserError(f"{folder}: none of its checkpoints is whole ({names}); choose another --out")
        log.info("nothing to resume in %s: starting afresh", out or Path("runs") / name)
    elif out is not None:
        _refuse_a_run(out)
    return out or _new_folder(name), None


def _refuse_a_run(out: Path) -> None:
    if (out / "metrics.csv").exists():
        raise UserError(f"{out} holds a run already; continue it with --resume auto, or choose another --out")


def _new_folder(name: str) -> Path:
    return Path("runs") / name / time.strftime("%Y-%m-%d_%H-%M-%S")


class RunFolder:
    """metrics.csv (a row a step), TensorBoard events, and a progress bar (plain lines where there is no terminal)."""

    def __init__(self, path: Path, *, num_steps: int, first_step: int):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.metrics_file = path / "metrics.csv"
        self._columns = self._keep_rows(first_step)
        self._board = SummaryWriter(str(path), purge_step=first_step)
        self._num_steps = num_steps
        console = Console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("train", total=num_steps, completed=first_step, text="")

    def _keep_rows(self, first_step: int) -> list[str] | None:
        """Drop rows of steps that a resumed run takes again; the columns of what stays."""
        if not self.metrics_file.exists() or first_step == 0:
            self.metrics_file.unlink(missing_ok=True)
            return None
        with self.metrics_file.open(newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            # a line that a killed process did not finish has too few values; it is of a step to come
            rows = [row for row in reader if None not in row.values() and int(row["step"]) < first_step]
        lines = [",".join(columns), *(",".join(row[c] for c in columns) for row in rows)]
        write_text(self.metrics_file, "\n".join(lines) + "\n" if columns else "")
        return columns or None

    def __enter__(self) -> "RunFolder":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
        self._board.close()

    def record(self, rows: list[dict[str, float]]) -> None:
        """Steps in order; each row has `step` and the same columns, None where nothing was measured."""
        with self.metrics_file.open("a", newline="") as file:
            if self._columns is None:
                self._columns = list(rows[0])
                file.write(",".join(self._columns) + "\n")
            csv.DictWriter(file, self._columns, lineterminator="\n").writerows(rows)
        for row in rows:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(f"train/{name}", value, row["step"])

    def show(self, step: int, text: str) -> None:
        """Progress after `step` steps."""
        if self._progress.disable:
            log.info("step %d/%d  %s", step, self._num_steps, text)
        else:
            self._progress.update(self._task, completed=step, text=text)

    def record_evaluation(self, step: int, metrics: dict) -> None:
        for name, value in metrics.items():
            if isinstance(value, float):
                self._board.add_scalar(f"val/{name}", value, step)
        self._board.flush()
