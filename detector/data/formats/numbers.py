"""Numbers as people's files write them: as text, with decimals, or as booleans."""

import math
import re
from typing import Any

MAX_ID = 2**53  # as far as every reader of JSON counts exactly
WHOLE = re.compile(r"\s*[-+]?[0-9]{1,20}(\.0*)?\s*")


def whole(value: Any) -> int | None:
    """The whole number that a JSON value means: 3, 3.0, "3" and "3.0" are 3. None for anything else."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_ID:
        return int(value)
    if isinstance(value, str) and WHOLE.fullmatch(value):
        return int(value.split(".")[0])
    return None


def as_number(value: Any) -> float | None:
    """The number that a JSON value means: 1.5, "1.5" and true (1) too. None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
        return value if math.isfinite(value) else None
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53):
        return float(value)
    return None
