"""Functions that read files of weights, without running code from the files."""

import importlib.util
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.core.errors import UserError

UNREADABLE = (  # a fuzzer made torch.load and pickle raise these on bytes that are no checkpoint
    *(pickle.UnpicklingError, struct.error, OSError, EOFError, RuntimeError, MemoryError, OverflowError),
    *(LookupError, ValueError, TypeError, AttributeError, AssertionError),
)

OTHER_FILES = {  # by their suffix
    **dict.fromkeys((".yaml", ".yml"), "a config"),
    **dict.fromkeys((".onnx", ".pt2"), "an exported model"),
    **dict.fromkeys((".json", ".csv", ".txt", ".html"), "a text file"),
    **dict.fromkeys((".jpg", ".jpeg", ".png"), "a picture"),
}


def load_tensors(path: Path) -> dict:
    """Read a file of torch.save that has only tensors and plain containers.

    Args:
        path: the file.

    Raises:
        UserError: the file does not exist, or has other contents.
    """
    return _load(path, lambda: torch.load(path, map_location="cpu", weights_only=True))


def load_contents(path: Path) -> dict:
    """Read a file of another project: a plain pickle of arrays (.pkl), or a file of torch.save.

    A file of torch.save may also have objects of unknown classes. `Foreign` replaces each of them.

    Args:
        path: the file.

    Raises:
        UserError: the file does not exist, or has other contents.
    """
    if path.suffix == ".pkl":
        return load_arrays(path)

    def load() -> Any:
        try:
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except ValueError:  # torch's older format has no list of globals
            foreign = []
        with torch.serialization.safe_globals([(Foreign, name) for name in foreign]):
            return torch.load(path, map_location="cpu", weights_only=True)

    return _load(path, load)


def load_safetensors(path: Path) -> dict:
    """Read a file in the format safetensors.

    Args:
        path: the file.

    Raises:
        UserError: the file does not exist or cannot be read, or the package safetensors is not installed.
    """
    if importlib.util.find_spec("safetensors") is None:
        raise UserError(f"{path}: safetensors is not installed", "run pip install safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    def load() -> dict:
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(str(error)) from error

    return _load(path, load)


def state_of(contents: dict) -> dict:
    """Return the state dict in the contents of a file. Many programs save it under the key `model` or `state_dict`."""
    return next((contents[key] for key in ("model", "state_dict") if isinstance(contents.get(key), dict)), contents)


def load_arrays(path: Path) -> dict:
    """Read a plain pickle of numpy arrays, numbers, text and containers of them.

    Args:
        path: the file.

    Raises:
        UserError: the file does not exist, or has other contents.
    """

    def load() -> Any:
        with path.open("rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()

    return _load(path, load)


class Foreign:
    """A replacement for objects of unknown classes. It takes all arguments and stores nothing."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _latin1(text: str, encoding: str) -> bytes:
    """Encode text as `_codecs.encode`, which the pickles of byte strings call, but only in latin1."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding!r}, not latin1")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    ADMITTED: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy.core.multiarray", "scalar"): np.float32(0).__reduce__()[0],
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        known = self.ADMITTED.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise pickle.UnpicklingError(f"{module}.{name} is neither an array nor a plain container")
        return known


def _load(path: Path, load: Callable[[], Any]) -> dict:
    if not path.is_file() or path.suffix.lower() in OTHER_FILES:
        raise _wrong_path(path)
    try:
        loaded = load()
    except UNREADABLE as error:
        raise UserError(
            f"{path}: not a readable checkpoint: the file is damaged, or has more than tensors",
            "give another file",
        ) from error
    if not isinstance(loaded, dict):
        raise UserError(
            f"{path}: the file holds a {type(loaded).__name__}, not a state dict",
            "give a file in which torch.save saved a state dict",
        )
    return loaded


def _wrong_path(path: Path) -> UserError:
    """Return the error for a path that is no file of weights. The remedy names a nearby checkpoint."""
    if path.is_dir():
        kind, folder = "a folder", path
    elif path.is_file():
        kind, folder = OTHER_FILES[path.suffix.lower()], path.parent
    else:
        return UserError(f"{path}: no such weights file", "check model.weights, or the path given")
    usual = [folder / name for name in ("checkpoints/best.pt", "checkpoints/last.pt", "best.pt", "last.pt")]
    files = [file for file in (*usual, *sorted(folder.glob("*.pt")), *sorted(folder.glob("*.pth"))) if file.is_file()]
    remedy = f"give {files[0]}" if files else "give a file that `detector train` wrote, as RUN/checkpoints/best.pt"
    return UserError(f"{path}: this is {kind}, not a checkpoint", remedy)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, cut to 120 characters, or the type of an error without message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
