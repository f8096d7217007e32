"""The contract of loggers, and their registry."""

from collections.abc import Mapping
from typing import Protocol

from detector.core.registry import Registry

EVALUATION = "val/"  # the names of an evaluation's values begin with it


class Logger(Protocol):
    """A receiver of the values of a run. Only the first process of a training has loggers.

    The constructor can have the positional parameters `folder`, the run folder (a Path that exists), and `first_step`.
    `first_step` is 0 in a new run. A resumed run repeats the steps from `first_step` on, and the logger drops or
    replaces the values that it has of these steps.
    """

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Record the values of a training step, or those of an evaluation after `step` steps.

        Args:
            step: the steps come in ascending order. The first training step is 0.
            values: the value of each name, or None if it was not measured. A name `P3/num_fg` or `class cat/num_fg`
                belongs to a pyramid level or a class; all other values of a training step are of the whole step. The
                names of an evaluation are `val/AP` and so on, and a call contains either these or those of a step.
        """

    def close(self) -> None:
        """Finish at the end of the run, also after an error."""


LOGGERS: Registry[Logger] = Registry("logger")
