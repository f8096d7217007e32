"""Matplotlib figures of a run: names from data are plain text in them, and what goes wrong in them ends nothing."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from detector.core.errors import one_line

log = logging.getLogger(__name__)
MAX_LABEL = 40  # characters


def plain(name: str) -> str:
    """A name as matplotlib's text: without TeX, on one line, and shown in a legend although it begins with `_`."""
    name = one_line(name)
    name = name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 3]}..."
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


@contextmanager
def plotting() -> Generator[None]:
    """As a context: figures without a window, and without warnings of missing glyphs and narrow layouts."""
    import matplotlib  # its import is slow

    matplotlib.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@contextmanager
def optional(what: str) -> Generator[None]:
    """Log an error inside the context as a warning, and continue."""
    try:
        yield
    except Exception as error:  # whatever it is
        log.warning("%s is left out: %s", what, one_line(f"{type(error).__name__}: {error}"))
