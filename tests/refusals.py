"""Checks of a UserError by its facts: the values that its problem and its remedy name."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from detector.core.errors import UserError


@contextmanager
def refused(*facts: str, remedy: str = "") -> Iterator[None]:
    """Expect a UserError of one line whose problem contains `facts`, and whose remedy is not empty.

    Args:
        facts: texts that the problem contains: a file, a line, a key or a value.
        remedy: a text that the remedy contains: a key or a command.
    """
    with pytest.raises(UserError) as raised:
        yield
    error = raised.value
    assert str(error).isprintable() and error.remedy and remedy in error.remedy, str(error)
    assert all(fact in error.problem for fact in facts), f"{error.problem}: expected {facts}"
