"""The files of a config: YAML with `base` files below it, found by a name or a path."""

import os
from pathlib import Path
from typing import Any

from detector.core.errors import UserError
from detector.core.overrides import merge
from detector.core.strict_yaml import read_yaml
from detector.core.validation import did_you_mean

_PACKAGE = Path(__file__).parents[1]
PACKAGED = _PACKAGE / "configs"  # in a wheel; in a clone the folder stands beside the package
CONFIGS = PACKAGED if PACKAGED.is_dir() else _PACKAGE.parent / "configs"


def read_values(path_or_name: str, search: Path = CONFIGS) -> dict[str, Any]:
    """Return the values of a file over those of its `base` files, not yet checked.

    A name without a folder is looked up in `search`, and `.yaml` may be left out. Raises UserError.
    """
    return _read_file(_locate(path_or_name, search))


def read_mapping(text: str, source: str) -> dict[str, Any]:
    """Return the keys and values of a YAML text. Raises UserError, which names `source`."""
    values = read_yaml(text, source)
    if values is None:  # an empty file
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{source}: should hold keys and values, not {values!r}")
    return values


def _locate(path_or_name: str, search: Path) -> Path:
    folder = os.path.dirname(path_or_name)
    stem = Path(os.path.expanduser(path_or_name)) if folder else search / path_or_name
    for path in (stem, Path(f"{stem}.yaml")):
        if path.is_file():
            return path
    _refuse_other_things(Path(os.path.expanduser(path_or_name)))
    known = sorted(path.stem for path in stem.parent.glob("*.yaml"))
    raise UserError(
        f"no config {path_or_name!r} in {stem.parent}{did_you_mean(Path(path_or_name).stem, known) or ';'} "
        f"known: {', '.join(known) or 'none'}" + ("" if folder else f"; a file elsewhere is ./{path_or_name}")
    )


def _refuse_other_things(path: Path) -> None:
    """Raises UserError where the path is a folder or a checkpoint, with the config that was probably meant."""
    is_checkpoint = path.is_file() and path.suffix in (".pt", ".pth")
    if is_checkpoint or path.is_dir():
        folders = (path, path.parent) if path.is_dir() else (path.parent, path.parent.parent)
        found = [folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()]
        what = "a checkpoint, not a config" if is_checkpoint else "a folder, not a config"
        where = found[0] if found else "a YAML file, as the config.yaml of a run"
        raise UserError(f"{path}: {what}; give {where}" + (f", or --checkpoint {path}" if is_checkpoint else ""))


def _read_file(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file over those of its bases; `below` are the files that led here."""
    files = (*below, path.resolve())
    if path.resolve() in below:
        raise UserError(f"{path}: base files lead back to it: {' -> '.join(file.name for file in files)}")
    _refuse_other_things(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a config: {error}") from None
    values = read_mapping(text, str(path))
    bases = values.pop("base", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: base: {bases!r} is wrong: should be a file or a list of files")
    merged: dict[str, Any] = {}
    for base in bases:
        file = path.parent / os.path.expanduser(base)
        if not file.is_file():
            raise UserError(f"{path}: base: no file {file}")
        merged = merge(merged, _read_file(file, files))
    return merge(merged, values)
