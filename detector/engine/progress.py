"""The progress of a run: the rows of its steps, the line on the console, and the warnings."""

import logging
import time
from datetime import timedelta

from detector.engine.run_folder import RunFolder
from detector.engine.schedule import Schedule
from detector.imbalance.meters import warnings

log = logging.getLogger(__name__)


class Progress:
    """Collects the numbers of the steps, and shows their means at intervals.

    Args:
        schedule: the schedule of the run.
        folder: the run folder, or None in a process that does not write the folder.
        term_names: the names of the loss terms. The parts of a term have names that begin with its name and `_`.
        meter_names: the names of the meters.
    """

    def __init__(self, schedule: Schedule, folder: RunFolder | None, *, term_names: list[str], meter_names: list[str]):
        self.schedule = schedule
        self.folder = folder
        self.term_names = term_names
        self.meter_names = meter_names
        self.rows: list[dict[str, float]] = []
        self.warned: set[str] = set()
        self.since = time.perf_counter()

    def add(self, row: dict[str, float]) -> None:
        """Add the numbers of a step, which include `step` and `lr`."""
        self.rows.append(row)

    def restart(self) -> None:
        """Restart the measurement of the speed."""
        self.since = time.perf_counter()

    def show(self, epoch: int, steps_done: int) -> None:
        """Record the rows since the last call, and show their means.

        Args:
            epoch: the number of the epoch, from 0.
            steps_done: the number of completed steps.
        """
        if self.rows and self.folder is not None:
            steps_per_s = len(self.rows) / (time.perf_counter() - self.since)
            images_per_s = steps_per_s * self.schedule.images_per_step
            self._record(self.folder, images_per_s)
            remaining_s = (self.schedule.num_steps - steps_done) / steps_per_s
            head = f"epoch {epoch + 1}/{self.schedule.settings.epochs}"
            text = f"{head}  ETA {_duration(remaining_s)}  {self._means()}  {images_per_s:.1f} images/s"
            self.folder.show(steps_done, text)
        self.rows.clear()
        self.restart()

    def _record(self, folder: RunFolder, images_per_s: float) -> None:
        for row in self.rows:
            if self.meter_names[0] in row:
                self._warn(row)
        unmeasured = dict.fromkeys(self.meter_names)
        rows = []
        for row in self.rows:
            numbers = {name: value for name, value in row.items() if name not in unmeasured}
            rows.append(numbers | {"images_per_s": images_per_s} | unmeasured | row)
        folder.record(rows)

    def _means(self) -> str:
        """Return the means of the steps that were not refused, as text."""
        rows = [row for row in self.rows if not row["refused"]] or self.rows
        mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if name not in self.meter_names}
        terms = []
        for term in self.term_names:
            parts = [
                f"{name.removeprefix(f'{term}_')} {mean[name]:.4f}"
                for name in mean
                if name.startswith(f"{term}_") and name not in self.term_names
            ]
            terms.append(f"{term} {mean[term]:.4f}" + (f" = {' + '.join(parts)}" if parts else ""))
        return (
            f"loss {mean['loss']:.4f} ({', '.join(terms)})  fg {mean['num_fg']:.0f}  "
            f"fg gradient {mean['fg_gradient_share']:.0%}"
        )

    def _warn(self, row: dict[str, float]) -> None:
        """Warn once of each kind, after the first tenth of the run. Before that, no detector separates the classes."""
        if row["step"] >= max(100, self.schedule.num_steps // 10):
            for kind, text in warnings(row).items():
                if kind not in self.warned:
                    log.warning("step %d: %s", row["step"], text)
            self.warned |= warnings(row).keys()


def _duration(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
