"""Results as dataclasses that become plain JSON values and are read back from them."""

import math
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from detector.core.errors import UserError
from detector.core.files import read_json

# JSON has no NaN: `write_json` writes null in its stead, which is read as NaN
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class JsonRecord:
    """The base of a frozen dataclass whose JSON object has its fields as keys.

    A field that a file may lack has a default. A float that may be NaN is a `Number`. Unknown keys are ignored.
    """

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values; NaN stays NaN."""
        record: Any = self  # the subclass is a dataclass
        return asdict(record)

    @classmethod
    def from_json(cls, values: object) -> Self:
        """Return the record that has these values. Raises ValueError where a value is missing or of a wrong type."""
        return validate(cls, values)


RecordType = TypeVar("RecordType", bound=JsonRecord)


def validate(kind: type[RecordType], values: object) -> RecordType:
    """Return a `kind` with these values. Raises ValueError with a line for the first value at fault."""
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def read_record(file: Path, kind: type[RecordType], command: str) -> RecordType:
    """Read the record that `command` has written.

    Args:
        file: a JSON file.
        kind: the class of the record.
        command: what the user should run again where the file is no such record.

    Returns:
        The record.

    Raises:
        UserError: the file cannot be read, is not JSON, or lacks a value.
    """
    try:
        return kind.from_json(read_json(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error})", f"repeat `{command}`") from None


@cache
def _adapter(kind: type[RecordType]) -> TypeAdapter[RecordType]:
    return TypeAdapter(kind)
