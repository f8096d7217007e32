"""Files of weights, read without running any code that they may hold."""

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

UNREADABLE = (  # what torch.load and pickle raise on bytes that are no checkpoint, as a fuzzer found
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
    """A file saved by torch.save, tensors and plain containers only. Raises UserError where there is none."""
    return _load(path, lambda: torch.load(path, map_location="cpu", weights_only=True))


def load_contents(path: Path) -> dict:
    """A file of another project: a plain pickle of arrays (.pkl), or a file saved by torch.save, where objects of any
    classes may lie beside the tensors: `Foreign` stands in for each of them. Raises UserError where it is neither."""
    if path.suffix == ".pkl":
        return load_arrays(path)

    def load() -> Any:
        try:
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except ValueError:  # torch's older format is not looked through
            foreign = []
        with torch.serialization.safe_globals([(Foreign, name) for name in foreign]):
            return torch.load(path, map_location="cpu", weights_only=True)

    return _load(path, load)


def load_safetensors(path: Path) -> dict:
    """Read a file of the format safetensors. Raises UserError where there is none, or the package is missing."""
    if importlib.util.find_spec("safetensors") is None:
        raise UserError(f"{path}: safetensors is not installed", "pip install safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    def load() -> dict:
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(str(error)) from error

    return _load(path, load)


def state_of(contents: dict) -> dict:
    """The state dict in a file: many programs put it under a key beside other things."""
    return next((contents[key] for key in ("model", "state_dict") if isinstance(contents.get(key), dict)), contents)


def load_arrays(path: Path) -> dict:
    """A plain pickle of numpy arrays, numbers, text and containers of them. Raises UserError where there is none."""

    def load() -> Any:
        with path.open("rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()

    return _load(path, load)


class Foreign:
    """Takes whatever an object is made of, and keeps nothing of it."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 2's byte strings are pickled with, for the one encoding they need."""
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
        raise UserError(f"{path}: {_what_was_meant(path)}")
    try:
        loaded = load()
    except UNREADABLE as error:
        raise UserError(
            f"{path}: not a readable checkpoint: damaged, or not what torch.save writes of tensors alone",
            "give another",
        ) from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds a {type(loaded).__name__}, not a state dict", "give a file saved by torch.save")
    return loaded


def _what_was_meant(path: Path) -> str:
    """What a path is that is no file of weights, and the file that was probably meant."""
    if path.is_dir():
        what, folder = "a folder, not a checkpoint", path
    elif path.is_file():
        what, folder = f"{OTHER_FILES[path.suffix.lower()]}, not a checkpoint", path.parent
    else:
        return "no such weights file; check model.weights or the path given"
    inside = [folder / name for name in ("checkpoints/best.pt", "checkpoints/last.pt", "best.pt", "last.pt")]
    found = [file for file in (*inside, *sorted(folder.glob("*.pt")), *sorted(folder.glob("*.pth"))) if file.is_file()]
    return f"{what}; give {found[0] if found else 'a file that `detector train` wrote, as RUN/checkpoints/best.pt'}"


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
