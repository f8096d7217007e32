"""Checkpoints: written whole or not at all, with a hash of their content, read as tensors and plain containers only."""

import hashlib
import logging
import os
from pathlib import Path
from typing import BinaryIO

import torch

from detector.core.errors import UserError
from detector.models.weights.files import load_tensors
from detector.old_versions import CHECKPOINT_KEYS, CHECKPOINT_VERSION, upgrade_checkpoint

log = logging.getLogger(__name__)
HASH_LENGTH = 64  # a SHA-256 in hexadecimal


def save_checkpoint(path: Path, contents: dict, keep: int = 1) -> None:
    """Write to a temporary file beside `path`, flush, then rename: a reader sees the old file or the new. The
    `keep` - 1 whole files before it stay as name.1.pt, name.2.pt, ..., the newest first. A damaged one takes no whole
    one's place, so that whenever the process is killed, one that was whole before or the new one is.

    The file is a zip archive, as torch.save writes it, whose comment is the SHA-256 of all bytes before the comment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb+") as file:
            _write(file, contents)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for age in range(keep - 1, 0, -1):
        newer = generation(path, age - 1)
        if newer.exists() and is_whole(newer):
            os.replace(newer, generation(path, age))
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def generation(path: Path, age: int) -> Path:
    """What a checkpoint is called after `age` newer ones: last.pt, last.1.pt, last.2.pt."""
    return path if age == 0 else path.with_name(f"{path.stem}.{age}{path.suffix}")


def _write(file: BinaryIO, contents: dict) -> None:
    try:
        torch.save(contents, file)
    except RuntimeError as error:  # of a full disk PyTorch says "unexpected pos"
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    file.seek(-2, os.SEEK_END)  # the length of the archive's comment
    file.write(HASH_LENGTH.to_bytes(2, "little"))
    file.write(_hash(file, file.seek(0, os.SEEK_END)))


def _hash(file: BinaryIO, length: int) -> bytes:
    """The SHA-256 of the first `length` bytes, behind which the file stands then."""
    content = hashlib.sha256()
    file.seek(0)
    while length > 0 and (block := file.read(min(length, 1 << 20))):
        content.update(block)
        length -= len(block)
    return content.hexdigest().encode()


def is_whole(path: Path) -> bool:
    """Whether a file's bytes are those that `save_checkpoint` wrote."""
    with path.open("rb") as file:
        return _hash(file, file.seek(0, os.SEEK_END) - HASH_LENGTH) == file.read()


def generations(path: Path) -> list[Path]:
    """`path` and its older generations, those that there are, the newest first."""
    older = [p for p in path.parent.glob(f"{path.stem}.*{path.suffix}") if p.stem.rpartition(".")[2].isdigit()]
    older.sort(key=lambda p: int(p.stem.rpartition(".")[2]))
    return [p for p in (path, *older) if p.is_file()]


def newest_whole(path: Path) -> Path | None:
    """`path` or, where it is missing or damaged, the newest of its older generations that is whole."""
    for found in generations(path):
        if is_whole(found):
            return found
        log.warning("%s is damaged: looking for an older checkpoint", found)
    return None


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint of this project; the contents of an older version are upgraded.

    Raises:
        UserError: the file is missing, unreadable, foreign, damaged or of an unknown version.
    """
    contents = load_tensors(path)
    if not contents.keys() >= CHECKPOINT_KEYS:
        raise UserError(
            f"{path}: a foreign checkpoint (no {', '.join(sorted(CHECKPOINT_KEYS - contents.keys()))})",
            "give one written by `detector train`, or load weights through model.weights",
        )
    if contents["version"] not in (2, CHECKPOINT_VERSION):
        raise UserError(
            f"{path}: checkpoint version {contents['version']}, this release reads 2 and {CHECKPOINT_VERSION}",
            "use the release that wrote the checkpoint",
        )
    if not is_whole(path):
        raise UserError(f"{path}: a damaged checkpoint, its content is not what was written", "take an older one")
    return upgrade_checkpoint(contents)
