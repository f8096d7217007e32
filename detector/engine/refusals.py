"""Refused steps: a record of each step, and the decision whether the run continues."""

import logging
import math
from pathlib import Path

from detector.core.distributed import rank
from detector.core.errors import UserError
from detector.core.files import write_json
from detector.core.structures import Batch
from detector.engine.guard import FaultSettings

log = logging.getLogger(__name__)
MAX_REFUSED = 20  # steps in a row


class RefusedStep(UserError):
    """A step was refused: its loss or gradient was not finite, or its loss was too high. The weights did not change."""


class Refusals:
    """Checks the numbers of the steps of a run.

    Args:
        folder: the run folder, for the records.
        faults: whether a refused step stops the run.
    """

    def __init__(self, folder: Path, faults: FaultSettings):
        self.folder = folder
        self.faults = faults
        self.num_in_a_row = 0

    def check(self, step: int, batches: list[Batch], numbers: dict[str, float]) -> None:
        """Write a record to refused/ in the run folder if the step was refused.

        Args:
            step: the number of the step.
            batches: this rank's batches of the step.
            numbers: the numbers of the step, including `refused`.

        Raises:
            RefusedStep: the step was refused, and the settings do not permit skipping it or too many steps in a row
                were refused.
        """
        if not numbers["refused"]:
            self.num_in_a_row = 0
            return
        self.num_in_a_row += 1
        file_names = [name for batch in batches for name in batch.file_names]
        path = self.folder / "refused" / f"step_{step}_rank_{rank()}.json"
        record = {
            "step": step,
            "rank": rank(),
            "image_ids": [i for batch in batches for i in batch.image_ids],
            "file_names": file_names,
            "numbers": {name: str(value) for name, value in numbers.items()},  # JSON knows neither inf nor nan
        }
        write_json(path, record)
        problem = f"step {step}: {self._reason(numbers)} (images {', '.join(file_names)}; details in {path})"
        remedy = "lower train.lr, set train.clip_norm or train.precision=fp32, and continue with --resume auto"
        if self.faults.bad_step == "stop":
            raise RefusedStep(problem, f"{remedy}, or skip these steps with faults.bad_step=skip")
        if self.num_in_a_row > MAX_REFUSED:
            raise RefusedStep(f"{problem}, after {MAX_REFUSED} refused steps", remedy)
        log.warning("%s: the step is skipped, and the weights do not change", problem)

    def _reason(self, numbers: dict[str, float]) -> str:
        if math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"]):
            return f"the loss {numbers['loss']:g} is above {self.faults.spike_factor:g} times its running mean"
        shown = ", ".join(f"{name} {value:g}" for name, value in numbers.items() if name not in ("refused", "num_fg"))
        return f"the loss or its gradient is not finite ({shown})"
