"""How files are written: replaced whole, and text as UTF-8 in every locale.

A file name that is not UTF-8 has lone surrogates in Python, which UTF-8 cannot hold. JSON escapes them and gives them
back; every other text has the escape `\\udcff` in their place.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from detector.core.errors import UserError

WRITE_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}  # for open(path, "w", ...)
MAX_NAME = 200  # bytes of a name without its suffixes; file systems end at 255


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place at the end: a reader sees the old file or the new one.

    After an error the temporary file is removed and `path` is as it was. Processes may write one path at the same time.
    Raises UserError where `path` is a folder.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder", "give the path of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_beside(path: Path) -> Path:
    """Where this process writes `path` before the result takes its place."""
    return path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")


def write_text(path: Path, text: str) -> None:
    """Replace `path` whole by a text."""
    with replacing(path) as temporary:
        temporary.write_text(text, **WRITE_TEXT)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` whole by these bytes."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: object) -> None:
    """Replace `path` whole by strict JSON; a number that is not finite becomes null."""
    write_text(path, json.dumps(_without_nan(value), indent=1, allow_nan=False))


@contextmanager
def utf8_path(path: Path) -> Iterator[str]:
    """As a context: a path whose name is UTF-8, for libraries that crash at another: `path`, or a link to it."""
    if is_utf8(path):
        yield str(path)
        return
    with TemporaryDirectory() as folder:
        link = Path(folder) / f"link{path.suffix if is_utf8(path.suffix) else ''}"
        link.symlink_to(path.absolute())
        yield str(link)


def is_utf8(path: Path | str) -> bool:
    """Whether the path can be given to a library that takes UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError, and ValueError where it is not JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def csv_line(values: Sequence[object]) -> str:
    """The line of a CSV file that holds these values; None is an empty cell."""
    line = io.StringIO()
    csv.writer(line).writerow(values)  # quotes line breaks of both kinds, as it ends its own lines by both
    return line.getvalue().removesuffix("\r\n") + "\n"


def unique_names(names: Sequence[str]) -> list[str]:
    """The names of files, without suffix: a name that was there before gets a number, a name too long is cut."""
    taken: dict[str, None] = {}
    for name in names:
        while len(os.fsencode(name)) > MAX_NAME:
            name = name[:-1]
        candidates = (name if i == 1 else f"{name}_{i}" for i in count(1))
        taken[next(candidate for candidate in candidates if candidate not in taken)] = None
    return list(taken)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
