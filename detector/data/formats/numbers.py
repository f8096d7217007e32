"""The parsing of numbers in annotation files: as text, with decimals, or as booleans."""

import math
import re
from typing import Any

MAX_ID = 2**53  # every JSON reader represents integers up to this value exactly
INTEGER = re.compile(r"\s*[-+]?[0-9]{1,20}(\.0*)?\s*")


def as_integer(value: Any) -> int | None:
    """Return the integer that a JSON value means (3, 3.0, "3" and "3.0" mean 3), or None for other values."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_ID:
        return int(value)
    if isinstance(value, str) and INTEGER.fullmatch(value):
        return int(value.split(".")[0])
    return None


def as_number(value: Any) -> float | None:
    """Return the number that a JSON value means (1.5 and "1.5" mean 1.5, true means 1), or None for other values."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
        return value if math.isfinite(value) else None
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53):
        return float(value)
    return None
