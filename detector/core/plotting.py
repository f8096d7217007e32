"""Functions for the Matplotlib figures of a run: names as plain text, and errors that do not end the run."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from detector.core.errors import one_line

log = logging.getLogger(__name__)
MAX_LABEL = 40  # characters


def plain(name: str) -> str:
    """Return a name as text for Matplotlib: one line, without TeX.

    A name that begins with `_` gets a space in front, because Matplotlib would omit it from the legend.
    """
    name = one_line(name)
    name = name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 3]}..."
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


@contextmanager
def plotting() -> Generator[None]:
    """As a context: draw without windows, and without warnings of missing glyphs and narrow layouts."""
    import matplotlib  # its import is slow

    matplotlib.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@contextmanager
def optional(output: str) -> Generator[None]:
    """As a context: log an error as a warning that names the output, and continue."""
    try:
        yield
    except Exception as error:  # of any type: a figure must not end a run
        log.warning("%s is not written: %s", output, one_line(f"{type(error).__name__}: {error}"))
