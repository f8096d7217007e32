"""Checkpoints: written whole or not at all, read as tensors and plain containers only."""

import os
from pathlib import Path

import torch

from detector.errors import UserError
from detector.models.weights import load_tensors

VERSION = 1
MODEL_KEYS = {"version", "config", "class_names", "category_ids", "model"}


def save_checkpoint(path: Path, contents: dict) -> None:
    """Write to a temporary file beside `path`, flush, then rename: a reader sees the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict:
    """A checkpoint of this project. Raises UserError for a missing, unreadable or foreign file."""
    contents = load_tensors(path)
    if not contents.keys() >= MODEL_KEYS:
        raise UserError(
            f"{path}: a foreign checkpoint (no {', '.join(sorted(MODEL_KEYS - contents.keys()))}); give one written by "
            "tools/train.py, or load weights through model.weights"
        )
    if contents["version"] != VERSION:
        raise UserError(f"{path}: checkpoint version {contents['version']}, this release reads {VERSION}")
    return contents
