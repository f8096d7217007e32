"""Reading the headers of all image files before the first step, in parallel and with a cache."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from detector.core.errors import UserError
from detector.core.files import read_json, write_json
from detector.core.machine import cache_folder, num_cores
from detector.data.images import Header, bits_of, read_header

Answer = TypeVar("Answer")
MAX_DEEP_IMAGES = 64  # 16-bit images that are decoded to measure the range of a data set's values


def read_headers(paths: Sequence[Path]) -> list[Header | str]:
    """Read the header of each file, or the problem of a file that cannot be read.

    The user's cache folder has a file of headers for each folder of images. A changed image is read again.
    """
    if not paths:
        return []
    folder = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    cache = cache_folder() / "headers" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.json"
    return look_at_files(
        paths,
        _header_or_error,
        cache,
        load=lambda entry: Header(**entry),
        dump=lambda answer: asdict(answer) if isinstance(answer, Header) else None,
    )


def _header_or_error(path: Path) -> Header | str:
    try:
        return read_header(path)
    except UserError as error:
        return error.problem.removeprefix(f"{path}: ")


def deep_bits(deep: Sequence[Path]) -> int:
    """Return the number of bits that the values of 16-bit images use, at least 8.

    The function decodes at most `MAX_DEEP_IMAGES` images, evenly spread over `deep`.
    """
    count = min(MAX_DEEP_IMAGES, len(deep))
    sample = [deep[i * len(deep) // count] for i in range(count)]
    used = [8]
    for path in sample:
        with contextlib.suppress(UserError):  # the reader of the image raises the same error
            used.append(bits_of(path))
    return max(used)


def look_at_files(
    paths: Sequence[Path],
    look: Callable[[Path], Answer],
    cache: Path,
    *,
    load: Callable,
    dump: Callable,
    advance: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Call `look` on each file, on all cores. The cache gives the answers for files that have not changed.

    Args:
        paths: the files.
        look: returns the answer for a file and raises nothing.
        cache: the JSON file that stores the answers.
        load: makes an answer from a JSON value. It raises TypeError, ValueError or KeyError for another form of value.
        dump: makes a JSON value from an answer, or returns None for an answer that must not be stored.
        advance: is called after each file.

    Returns:
        The answers in the order of `paths`.
    """
    known = _load(cache, load)

    def answer(path: Path) -> tuple[str | None, Answer]:
        try:
            status = os.stat(path)
            key = f"{status.st_size} {status.st_ctime_ns} {os.path.realpath(path)}"
        except (OSError, ValueError):  # `look` reports the missing file
            key = None
        result = known[key] if key in known else look(path)
        advance()
        return key, result

    with ThreadPoolExecutor(num_cores()) as pool:  # reading, hashing and decoding release the GIL
        answers = list(pool.map(answer, paths))
    if any(key not in known for key, _ in answers):
        content = {key: dump(result) for key, result in (*known.items(), *answers) if key is not None}
        with contextlib.suppress(OSError, UserError):  # without the cache, the next call only takes longer
            write_json(cache, {key: entry for key, entry in content.items() if entry is not None})
    return [result for _, result in answers]


def _load(cache: Path, load: Callable) -> dict:
    """Return no entries for a missing file or a file of another form, since the answers can be computed again."""
    try:
        return {key: load(entry) for key, entry in read_json(cache).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
