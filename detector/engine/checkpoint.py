"""Checkpoint files. A file is replaced as a whole, has a checksum, and contains only tensors and plain containers."""

import hashlib
import logging
import os
from pathlib import Path
from typing import BinaryIO

import torch

from detector.core.errors import UserError
from detector.core.files import replacing, sync
from detector.models.weights.files import load_tensors
from detector.old_versions import CHECKPOINT_KEYS, CHECKPOINT_VERSION, upgrade_checkpoint

log = logging.getLogger(__name__)
HASH_LENGTH = 64  # a SHA-256 in hexadecimal


def save_checkpoint(path: Path, contents: dict, keep: int = 1) -> None:
    """Replace a checkpoint file as a whole, and wait until the disk has it.

    Older checkpoints become name.1.pt, name.2.pt, ..., the newest first. A damaged file does not replace an intact
    file. So there is an intact file, the old or the new one, whenever the process is killed.

    The file is a zip archive, as torch.save writes it. The archive's comment is the SHA-256 of all bytes before the
    comment.

    Args:
        path: the file to write.
        contents: tensors and plain containers.
        keep: the number of checkpoints to keep, the new checkpoint included.

    Raises:
        UserError: `path` is a folder.
        OSError: the file cannot be written.
    """
    # the name is fixed: a killed writer's file does not stay, and the run folder's lock excludes a second writer
    with replacing(path, path.with_name(path.name + ".tmp")) as temporary:
        with temporary.open("wb+") as file:
            _write(file, contents)
        sync(temporary)
        for age in range(keep - 1, 0, -1):
            newer = generation(path, age - 1)
            if newer.exists() and is_whole(newer):
                os.replace(newer, generation(path, age))
    sync(path.parent)


def generation(path: Path, age: int) -> Path:
    """Return the name of a checkpoint after `age` newer checkpoints: last.pt, last.1.pt, last.2.pt."""
    return path if age == 0 else path.with_name(f"{path.stem}.{age}{path.suffix}")


def _write(file: BinaryIO, contents: dict) -> None:
    try:
        torch.save(contents, file)
    except RuntimeError as error:  # for a full disk PyTorch reports "unexpected pos"
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    file.seek(-2, os.SEEK_END)  # the length of the archive's comment
    file.write(HASH_LENGTH.to_bytes(2, "little"))
    file.write(_hash(file, file.seek(0, os.SEEK_END)))


def _hash(file: BinaryIO, length: int) -> bytes:
    """Return the SHA-256 of the first `length` bytes in hexadecimal, and leave the file's position behind them."""
    content = hashlib.sha256()
    file.seek(0)
    while length > 0 and (block := file.read(min(length, 1 << 20))):
        content.update(block)
        length -= len(block)
    return content.hexdigest().encode()


def is_whole(path: Path) -> bool:
    """Whether the bytes of a file are those that `save_checkpoint` wrote."""
    with path.open("rb") as file:
        return _hash(file, file.seek(0, os.SEEK_END) - HASH_LENGTH) == file.read()


def generations(path: Path) -> list[Path]:
    """Return the files of `path` and its older generations that exist, the newest first."""
    older = [p for p in path.parent.glob(f"{path.stem}.*{path.suffix}") if p.stem.rpartition(".")[2].isdigit()]
    older.sort(key=lambda p: int(p.stem.rpartition(".")[2]))
    return [p for p in (path, *older) if p.is_file()]


def newest_whole(path: Path) -> Path | None:
    """Return `path`, or the newest intact older generation if `path` is missing or damaged, or None."""
    for candidate in generations(path):
        if is_whole(candidate):
            return candidate
        log.warning("%s is damaged: looking for an older checkpoint", candidate)
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
