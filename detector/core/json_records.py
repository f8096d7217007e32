"""The base class of results that are dataclasses in Python and objects in JSON files."""

import math
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from detector.core.errors import UserError
from detector.core.files import read_json

# JSON has no NaN: `write_json` writes null, and the reader converts null to NaN
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class JsonRecord:
    """The base of a frozen dataclass whose JSON object has its fields as keys.

    A field that a file may lack has a default. A float that may be NaN has the type `Number`. Unknown keys are ignored.
    """

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values. NaN stays NaN."""
        record: Any = self  # the subclass is a dataclass
        return asdict(record)

    @classmethod
    def from_json(cls, values: object) -> Self:
        """Return the record with these values. Raises ValueError where a value is missing or has a wrong type."""
        return validate(cls, values)


RecordType = TypeVar("RecordType", bound=JsonRecord)


def validate(kind: type[RecordType], values: object) -> RecordType:
    """Return a record of a class.

    Args:
        kind: the class of the record.
        values: the fields and their values.

    Raises:
        ValueError: a value is missing or has a wrong type. The text names the first of these values.
    """
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def read_record(file: Path, kind: type[RecordType], command: str) -> RecordType:
    """Return the record in a file that `command` has written.

    Args:
        file: a JSON file.
        kind: the class of the record.
        command: the command that the user should run again where the file does not contain the record.

    Raises:
        UserError: the file cannot be read, is not JSON, or lacks a value.
    """
    try:
        return kind.from_json(read_json(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: the file cannot be read ({error})", f"repeat `{command}`") from None


@cache
def _adapter(kind: type[RecordType]) -> TypeAdapter[RecordType]:
    return TypeAdapter(kind)
