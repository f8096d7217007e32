"""Steps that were refused: a record of each, and whether the run goes on."""

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
    """The loss or its gradient was not a finite number, or the loss rose too far. The weights are as before."""


class Refusals:
    """Judges the steps of a run by their numbers."""

    def __init__(self, folder: Path, faults: FaultSettings):
        self.folder = folder
        self.faults = faults
        self.num_in_a_row = 0

    def check(self, step: int, batches: list[Batch], numbers: dict[str, float]) -> None:
        """Leave a record where the step was refused.

        Args:
            step: the number of the step.
            batches: this rank's batches of the step.
            numbers: what the step measured, `refused` among it.

        Raises:
            RefusedStep: the step was refused, and the settings do not allow the run to skip it.
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
        problem = f"step {step}: {self._reason(numbers)} on {', '.join(file_names)}; see {path}"
        remedy = "lower train.lr, set train.clip_norm or train.precision=fp32, and continue with --resume auto"
        if self.faults.bad_step == "stop":
            raise RefusedStep(problem, f"{remedy}, or skip such steps by faults.bad_step=skip")
        if self.num_in_a_row > MAX_REFUSED:
            raise RefusedStep(f"{problem}; so were the {MAX_REFUSED} before it", remedy)
        log.warning("%s: skipped, the weights are as before", problem)

    def _reason(self, numbers: dict[str, float]) -> str:
        if math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"]):
            return f"the loss {numbers['loss']:g} is over {self.faults.spike_factor:g} times its running mean"
        shown = ", ".join(f"{name} {value:g}" for name, value in numbers.items() if name not in ("refused", "num_fg"))
        return f"the loss or its gradient is not finite ({shown})"
