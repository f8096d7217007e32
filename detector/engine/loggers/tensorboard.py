"""TensorBoard events: the tags are train/NAME and val/NAME."""

from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary  # ty: ignore[missing-module-member]  (made at import)
from torch.utils.tensorboard import SummaryWriter

from detector.core.errors import UserError
from detector.core.files import is_utf8
from detector.engine.loggers.base import EVALUATION, LOGGERS


@LOGGERS.register("tensorboard")
class TensorBoardLogger:
    """Writes the events to the run folder. TensorBoard hides the events of the steps that a resumed run repeats."""

    def __init__(self, folder: Path, first_step: int):
        if not is_utf8(folder):
            raise UserError(
                f"{folder.absolute()}: the run folder's path is not UTF-8, which TensorBoard needs",
                "choose another --out, or leave tensorboard out of train.loggers",
            )
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        # an event for each value of a step with many classes would take milliseconds
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
        self._writer.close()
