r"""Functions that write and read files. A file is replaced atomically, and text is UTF-8 in every locale.

Python represents a file name that is not UTF-8 with lone surrogates, which UTF-8 cannot encode. JSON escapes the
surrogates, and its reader restores them. All other text contains the escape `\udcff` instead.
"""

import csv
import io
import json
import math
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from detector.core.errors import UserError

WRITE_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}  # for open(path, "w", ...)
MAX_NAME = 200  # bytes of a name without its suffixes; file systems allow 255


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Generator[Path]:
    """As a context: give a temporary path, and rename its file to `path` at the end of the context.

    A reader finds the complete old file or the complete new file. After an error the temporary file is removed, and
    `path` is unchanged. Several processes can replace the same path at the same time, unless they share `temporary`.

    The context does not wait for the disk. A caller that must survive a power failure calls `sync` for the temporary
    file before the end of the context, and for the folder after it.

    Args:
        path: the file to replace. Missing folders above it are created.
        temporary: a file in the same folder. The default is a name that contains the id of this process. With a fixed
            name, the next writer overwrites the temporary file of a killed writer.

    Raises:
        UserError: `path` is a folder.
    """
    if path.is_dir():
        raise UserError(f"{path}: the path is a folder", "give the path of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or temporary_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_beside(path: Path) -> Path:
    """Return the path to which this process writes before it replaces `path`."""
    stem = path.stem[:50]  # at most 200 bytes of UTF-8, since the name of `path` can have the maximum length
    return path.with_name(f"{stem}.{os.getpid()}.tmp{path.suffix}")


def sync(path: Path) -> None:
    """Wait until the disk has the content of a file, or the names of the files in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` atomically with a text."""
    with replacing(path) as temporary:
        temporary.write_text(text, **WRITE_TEXT)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Replace the file `path` atomically with these bytes."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: object) -> None:
    """Replace the file `path` atomically with strict JSON. A number that is not finite becomes null."""
    write_text(path, json.dumps(_without_nan(value), indent=1, allow_nan=False))


@contextmanager
def utf8_path(path: Path) -> Generator[str]:
    """As a context: give `path`, or a link to it where `path` is not UTF-8. Some libraries crash at such a path."""
    if is_utf8(path):
        yield str(path)
        return
    with TemporaryDirectory() as folder:
        link = Path(folder) / f"link{path.suffix if is_utf8(path.suffix) else ''}"
        link.symlink_to(path.absolute())
        yield str(link)


def is_utf8(path: Path | str) -> bool:
    """Return whether UTF-8 can encode the path."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises OSError, and ValueError if the file is not JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def csv_line(values: Sequence[object]) -> str:
    """Return the values as a line of a CSV file. None becomes an empty cell."""
    line = io.StringIO()
    csv.writer(line).writerow(values)  # its line end is "\r\n", so it quotes values that contain "\r" or "\n"
    return line.getvalue().removesuffix("\r\n") + "\n"


def unique_names(names: Sequence[str]) -> list[str]:
    """Return unique names of files, without suffixes. Repeated names get a number, and long names are cut."""
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
