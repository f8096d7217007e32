"""Functions that read the files of a config: a YAML file, given by its name or its path, and its `base` files.

A base is relative to the file that names it. A name without a folder can also be a file of the project.
"""

import os
from pathlib import Path
from typing import Any

from detector.core.errors import UserError
from detector.core.overrides import merge
from detector.core.strict_yaml import read_yaml
from detector.core.validation import did_you_mean

_PACKAGE = Path(__file__).parents[1]
PACKAGED = _PACKAGE / "configs"  # in a wheel; in a clone of the repository the folder is next to the package
CONFIGS = PACKAGED if PACKAGED.is_dir() else _PACKAGE.parent / "configs"


def read_values(path_or_name: str, search: Path = CONFIGS) -> dict[str, Any]:
    """Return the values of a file, merged over the values of its `base` files. No schema has checked them yet.

    Args:
        path_or_name: a path, or the name of a file in `search`. The suffix `.yaml` is optional.
        search: the folder of the files that are given by a name without a folder.

    Raises:
        UserError: a file is missing, is not readable, is not a mapping in YAML, or is one of its base files.
    """
    return _read_file(_locate(path_or_name, search))


def read_mapping(text: str, source: str) -> dict[str, Any]:
    """Return the keys and values of a YAML text. An empty text has none.

    Args:
        text: the YAML text.
        source: the name of the text in error messages.

    Raises:
        UserError: the text is not a mapping in YAML.
    """
    values = read_yaml(text, source)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{source}: the content is {values!r}", "write a mapping of keys to values")
    return values


def _locate(path_or_name: str, search: Path) -> Path:
    folder = os.path.dirname(path_or_name)
    stem = Path(os.path.expanduser(path_or_name)) if folder else search / path_or_name
    for path in (stem, Path(f"{stem}.yaml")):
        if path.is_file():
            return path
    _refuse_folder_or_checkpoint(Path(os.path.expanduser(path_or_name)))
    known = sorted(path.stem for path in stem.parent.glob("*.yaml"))
    hint = did_you_mean(Path(path_or_name).stem, known).removeprefix("; ")
    choices = f"{hint} known configs: {', '.join(known) or 'none'}".strip()
    raise UserError(
        f"there is no config {path_or_name!r} in {stem.parent}",
        choices if folder else f"{choices}; for a file in the working folder, give ./{path_or_name}",
    )


def _refuse_folder_or_checkpoint(path: Path) -> None:
    """Raise UserError where the path is a folder or a checkpoint. Its remedy names the config of that run."""
    is_checkpoint = path.is_file() and path.suffix in (".pt", ".pth")
    if is_checkpoint or path.is_dir():
        folders = (path, path.parent) if path.is_dir() else (path.parent, path.parent.parent)
        configs = [folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()]
        remedy = f"give {configs[0]}" if configs else "give a YAML file, for example the config.yaml of a run"
        raise UserError(
            f"{path}: the path is a {'checkpoint' if is_checkpoint else 'folder'}, not a config",
            f"{remedy}, or --checkpoint {path}" if is_checkpoint else remedy,
        )


def _read_file(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the values of a file, merged over the values of its bases. `below` are the files that led to it."""
    files = (*below, path.resolve())
    if path.resolve() in below:
        cycle = " -> ".join(file.name for file in files)
        raise UserError(f"{path}: base: the file includes itself ({cycle})", "remove one of these bases")
    _refuse_folder_or_checkpoint(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the file cannot be read ({error})", "give a YAML file in UTF-8") from None
    values = read_mapping(text, str(path))
    bases = values.pop("base", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: base: {bases!r} is wrong", "give a file or a list of files")
    merged: dict[str, Any] = {}
    for base in bases:
        file = path.parent / os.path.expanduser(base)
        if not (file.is_file() or os.path.dirname(base)):
            file = CONFIGS / base
        if not file.is_file():
            raise UserError(f"{path}: base: there is no file {file}", "correct the path")
        merged = merge(merged, _read_file(file, files))
    return merge(merged, values)
