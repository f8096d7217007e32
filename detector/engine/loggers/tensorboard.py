"""TensorBoard events with the tags train/NAME and val/NAME."""

from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary  # ty: ignore[missing-module-member]  (made at import)
from torch.utils.tensorboard import SummaryWriter

from detector.core.errors import UserError
from detector.core.files import is_utf8
from detector.engine.loggers.base import EVALUATION, LOGGERS


@LOGGERS.register("tensorboard")
class TensorBoardLogger:
    """Writes events to the run folder. TensorBoard hides the earlier events of the steps that a resumed run repeats."""

    def __init__(self, folder: Path, first_step: int):
        if not is_utf8(folder):
            raise UserError(
                f"{folder.absolute()}: the path of the run folder is not UTF-8, but TensorBoard requires UTF-8",
                "choose another --out, or remove tensorboard from train.loggers",
            )
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write the values as one event."""
        # with many classes, an event for each value would take milliseconds in each step
        summary = [
            Summary.Value(tag=name if name.startswith(EVALUATION) else f"train/{name}", simple_value=value)
            for name, value in values.items()
            if value is not None
        ]
        file_writer = self._writer.file_writer
        assert file_writer is not None
        file_writer.add_summary(Summary(value=summary), step)
        if any(name.startswith(EVALUATION) for name in values):
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
