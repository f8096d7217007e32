"""What the image files of a data set say of themselves, read before the first step: in parallel, and each file once."""

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
MAX_DEEP_IMAGES = 64  # of 16 bits, that are decoded to learn what range a data set's values have


def read_headers(paths: Sequence[Path]) -> list[Header | str]:
    """Read each file's header, or what is wrong with the file. Headers are kept in the user's cache, in a file for each
    folder of images, and are read again where a file has changed."""
    if not paths:
        return []
    folder = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    cache = cache_folder() / "headers" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.json"
    return look_at_files(
        paths,
        _header_or_error,
        cache,
        load=lambda kept: Header(**kept),
        dump=lambda answer: asdict(answer) if isinstance(answer, Header) else None,
    )


def _header_or_error(path: Path) -> Header | str:
    try:
        return read_header(path)
    except UserError as error:
        return error.problem.removeprefix(f"{path}: ")


def deep_bits(deep: Sequence[Path]) -> int:
    """The bits that the values of 16-bit images use, at least 8, by a part of the images that is evenly spread."""
    count = min(MAX_DEEP_IMAGES, len(deep))
    sample = [deep[i * len(deep) // count] for i in range(count)]
    used = [8]
    for path in sample:
        with contextlib.suppress(UserError):  # which comes up again where the image is read
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
    """Call `look` on each file, on all cores; take the answer of an earlier call where the file has not changed since.

    Args:
        paths: the files.
        look: gives the answer for a file; it raises nothing.
        cache: the JSON file that keeps the answers.
        load: makes an answer of what JSON holds; TypeError, ValueError or KeyError where that has another form.
        dump: makes what JSON can hold of an answer, or None of an answer that is not to be kept.
        advance: is called after each file.
    """
    known = _load(cache, load)

    def answer(path: Path) -> tuple[str | None, Answer]:
        try:
            status = os.stat(path)
            key = f"{status.st_size} {status.st_ctime_ns} {os.path.realpath(path)}"
        except (OSError, ValueError):  # the file is not there, and `look` says so
            key = None
        result = known[key] if key in known else look(path)
        advance()
        return key, result

    with ThreadPoolExecutor(num_cores()) as pool:  # reading, hashing and decoding release the interpreter
        answers = list(pool.map(answer, paths))
    if any(key not in known for key, _ in answers):
        content = {key: dump(result) for key, result in (*known.items(), *answers) if key is not None}
        with contextlib.suppress(OSError, UserError):  # a cache that cannot be kept costs time alone
            write_json(cache, {key: kept for key, kept in content.items() if kept is not None})
    return [result for _, result in answers]


def _load(cache: Path, load: Callable) -> dict:
    """Nothing from a file that is not there or has another form: it holds what can be had again."""
    try:
        return {key: load(kept) for key, kept in read_json(cache).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
