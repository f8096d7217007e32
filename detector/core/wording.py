"""Numbers and names in the sentences and tables that a person reads."""

import math
from collections.abc import Sequence

from detector.core.errors import one_line

MAX_NAME = 40  # characters


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` decimals, and `none` for None and NaN."""
    return "none" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def percent(share: float) -> str:
    """Return a share of 0..1 in percent, with one decimal below 1% and above 99%."""
    return f"{share:.0%}" if 0.01 <= share <= 0.99 or share in (0, 1) else f"{share:.1%}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, which gets an `s` where the count is not 1."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(items: Sequence[str]) -> str:
    """Join texts as `a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def short(name: str) -> str:
    """Return a name from data as one line of at most MAX_NAME characters."""
    name = one_line(name)
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."


def ratio(value: float) -> str:
    """Return how many times a quantity is larger: with one decimal below 10."""
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"
