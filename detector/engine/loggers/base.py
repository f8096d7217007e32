"""The contract of loggers, and their registry."""

from collections.abc import Mapping
from typing import Protocol

from detector.core.registry import Registry

EVALUATION = "val/"  # the prefix of the names of the values of an evaluation


class Logger(Protocol):
    """A recorder of the values of a run. Only the first process of a training has loggers.

    The constructor can have the positional parameters `folder`, the Path of the existing run folder, and `first_step`.
    `first_step` is 0 in a new run. A resumed run repeats the steps from `first_step` on. The logger then drops or
    replaces the earlier values of these steps.
    """

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Record the values of a training step, or those of an evaluation after `step` steps.

        Args:
            step: the number of the step, in ascending order. The first training step is 0.
            values: the value of each name, or None for a value that was not measured. A name with a slash, such as
                `P3/num_fg` or `class cat/num_fg`, is a value of a pyramid level or a class. The names of an evaluation
                are `val/AP` and so on. A call has the values of a training step or those of an evaluation, not both.
        """

    def close(self) -> None:
        """Close the record at the end of the run, also after an error."""


LOGGERS: Registry[Logger] = Registry("logger")
