"""Checkpoint files. A file is replaced in one step, has a checksum, and contains only tensors and plain containers."""

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
    """Replace a checkpoint file in one step, and wait until the disk has it.

    Older checkpoints become name.1.pt, name.2.pt, ..., the newest first. A damaged file does not replace an intact
    file. Therefore an intact checkpoint, old or new, exists whenever the process is killed.

    The file is the zip archive that torch.save writes. The comment of the archive is the SHA-256, in hexadecimal, of
    all bytes before the comment.

    Args:
        path: the file to write.
        contents: tensors and plain containers.
        keep: the number of checkpoints to keep, including the new checkpoint.

    Raises:
        UserError: `path` is a folder.
        OSError: the file cannot be written.
    """
    # the fixed name overwrites the file of a killed writer; the lock of the run folder excludes a second writer
    with replacing(path, path.with_name(path.name + ".tmp")) as temporary:
        with temporary.open("wb+") as file:
            _write(file, contents)
        sync(temporary)
        for age in range(keep - 1, 0, -1):
            newer = generation(path, age - 1)
            if newer.exists() and is_intact(newer):
                os.replace(newer, generation(path, age))
    sync(path.parent)


def generation(path: Path, age: int) -> Path:
    """Return the path of a checkpoint after `age` newer checkpoints were written.

    Args:
        path: the path of the newest checkpoint, for example last.pt.
        age: 0 gives last.pt, 1 gives last.1.pt, and so on.
    """
    return path if age == 0 else path.with_name(f"{path.stem}.{age}{path.suffix}")


def _write(file: BinaryIO, contents: dict) -> None:
    try:
        torch.save(contents, file)
    except RuntimeError as error:  # if the disk is full, PyTorch reports only "unexpected pos"
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    file.seek(-2, os.SEEK_END)  # the length field of the archive comment
    file.write(HASH_LENGTH.to_bytes(2, "little"))
    file.write(_hash(file, file.seek(0, os.SEEK_END)))


def _hash(file: BinaryIO, length: int) -> bytes:
    """Return the SHA-256 of the first `length` bytes in hexadecimal. The file is then positioned after these bytes."""
    content = hashlib.sha256()
    file.seek(0)
    while length > 0 and (block := file.read(min(length, 1 << 20))):
        content.update(block)
        length -= len(block)
    return content.hexdigest().encode()


def is_intact(path: Path) -> bool:
    """Return whether a file has the checksum that `save_checkpoint` wrote."""
    with path.open("rb") as file:
        return _hash(file, file.seek(0, os.SEEK_END) - HASH_LENGTH) == file.read()


def generations(path: Path) -> list[Path]:
    """Return the existing files among `path` and its older generations, the newest first."""
    older = [p for p in path.parent.glob(f"{path.stem}.*{path.suffix}") if p.stem.rpartition(".")[2].isdigit()]
    older.sort(key=lambda p: int(p.stem.rpartition(".")[2]))
    return [p for p in (path, *older) if p.is_file()]


def newest_intact(path: Path) -> Path | None:
    """Return the newest intact file among `path` and its older generations, or None."""
    for candidate in generations(path):
        if is_intact(candidate):
            return candidate
        log.warning("%s is damaged: trying an older checkpoint", candidate)
    return None


def load_checkpoint(path: Path) -> dict:
    """Return the contents of a checkpoint of this project. Contents of an older version are upgraded.

    Raises:
        UserError: the file is missing, unreadable or damaged, or is not a checkpoint of this project, or its version is
            not supported.
    """
    contents = load_tensors(path)
    if not contents.keys() >= CHECKPOINT_KEYS:
        raise UserError(
            f"{path}: not a checkpoint of `detector train` (no {', '.join(sorted(CHECKPOINT_KEYS - contents.keys()))})",
            "give a checkpoint of `detector train`, or load the weights through model.weights",
        )
    if contents["version"] not in (2, CHECKPOINT_VERSION):
        raise UserError(
            f"{path}: the checkpoint has version {contents['version']}; this release reads 2 and {CHECKPOINT_VERSION}",
            "use the release that wrote the checkpoint",
        )
    if not is_intact(path):
        raise UserError(f"{path}: the checkpoint is damaged (wrong SHA-256)", "use an older checkpoint")
    return upgrade_checkpoint(contents)
