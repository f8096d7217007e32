"""Reading and writing of image files. Pixels are always (H, W, 3) uint8 RGB."""

import contextlib
import glob
import io
import os
import re
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps
from torch import Tensor, uint8

from detector.core.errors import UserError
from detector.core.files import write_bytes

FORMATS = {  # Pillow's names, by suffix; MPO is JPEG with further images behind the first
    ".bmp": ("BMP", "DIB"),
    ".gif": ("GIF",),
    ".jfif": ("JPEG", "MPO"),
    ".jpeg": ("JPEG", "MPO"),
    ".jpg": ("JPEG", "MPO"),
    ".png": ("PNG",),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
    ".webp": ("WEBP",),
}
with contextlib.suppress(ImportError):  # the extra `heic`
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS |= {".heic": ("HEIF",), ".heif": ("HEIF",)}
SUFFIXES = tuple(FORMATS)
WRITTEN_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# suffixes of images that cannot be read; the data check lists these files separately
OTHER_SUFFIXES = frozenset(
    {".avif", ".cr2", ".cr3", ".dcm", ".dng", ".heic", ".heif", ".j2k", ".jp2", ".jpe", ".jxl", ".nef", ".arw", ".pgm"}
    | {".pbm", ".ppm", ".pnm", ".psd", ".raw", ".svg", ".tga"}
) - set(SUFFIXES)
DECODED_BY_PILLOW = ("GIF", "HEIF", "I", "I;16S")  # formats, and modes of integers
IN_RANGE = 99.9  # percentage of the values of an image that are in the range of its bits
MAX_PIXELS = 178_000_000  # half a gigabyte as RGB
ORIENTATION = ExifTags.Base.Orientation
FULL_BITS = 16  # of a 16-bit image whose values use the full range

FIRST_BYTES = 1 << 16
_WARNINGS = threading.Lock()  # all threads share Python's warning filters

ImageInput = str | Path | np.ndarray | Image.Image | Tensor

_JPEG_END = 0xD9
# A JPEG marker: 0xFF and a code. Inside compressed data 0xFF is followed by 0 or a restart code (D0 to D7).
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an image file.

    Attributes:
        width: the width of the stored pixels.
        height: the height of the stored pixels.
        format: the format, as Pillow names it.
        mode: the mode, as Pillow names it.
        is_deep: whether the image has 16 bits per channel.
        orientation: the EXIF orientation: 2 to 8 for a mirrored or rotated image, otherwise 1.
    """

    width: int
    height: int
    format: str
    mode: str
    is_deep: bool
    orientation: int

    def upright_size(self) -> tuple[int, int]:
        """Return (width, height) of the image as a viewer shows it."""
        return (self.height, self.width) if 5 <= self.orientation <= 8 else (self.width, self.height)


def read_header(path: Path) -> Header:
    """Read the header from the first bytes of a file, and the last two bytes of a JPEG.

    Raises:
        UserError: as in `read_image`.
    """
    try:
        with path.open("rb") as file:
            return _parse_header(path, file)
    except (OSError, ValueError) as error:
        raise _cannot_read(path, error) from None


def read_image(path: Path, *, upright: bool = False, bits: int | None = FULL_BITS) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB.

    A gray channel is repeated three times, an alpha channel is dropped, and an animation gives its first image.

    Args:
        path: the file.
        upright: whether to rotate the image by its EXIF orientation, as a viewer does. Annotations often refer to the
            stored pixels instead (those of COCO do).
        bits: the number of bits that the values of a 16-bit image use (see `bits_of`). The value 2^bits becomes 256.
            None measures the bits on this image.

    Raises:
        UserError: the file is missing, empty, not an image, truncated, or larger than MAX_PIXELS.
    """
    data = _read_bytes(path)
    header = _parse_header(path, io.BytesIO(data))
    if header.format in DECODED_BY_PILLOW or header.mode in DECODED_BY_PILLOW:
        with Image.open(io.BytesIO(data)) as image:
            return _from_pillow(ImageOps.exif_transpose(image) if upright else image, str(path), bits)
    image = _decode(path, data, upright=upright, deep=header.is_deep)
    return cv2.cvtColor(to_8_bits(image, bits), cv2.COLOR_BGR2RGB)


def bits_of(path: Path) -> int:
    """Return the number of bits that the values of an image use, at least 8: 12 for values up to 4095.

    The function ignores the highest 0.1% of the values, since hot pixels exceed the range.

    Raises:
        UserError: the image cannot be read.
    """
    data = _read_bytes(path)
    if _parse_header(path, io.BytesIO(data)).mode in DECODED_BY_PILLOW:
        with Image.open(io.BytesIO(data)) as image:
            return _bits(_integers(image, str(path)))
    return _bits(_decode(path, data, upright=False, deep=True))


def to_8_bits(pixels: np.ndarray, bits: int | None) -> np.ndarray:
    """Scale pixels of more than 8 bits to uint8, so that 2^bits becomes 256. Values above the range become 255.

    Args:
        pixels: an array of integers.
        bits: the number of bits that the values use. None measures it on `pixels`.
    """
    if pixels.dtype == np.uint8:
        return pixels
    shift = (_bits(pixels) if bits is None else bits) - 8
    return np.clip(pixels >> shift, 0, 255).astype(np.uint8)


def _bits(pixels: np.ndarray) -> int:
    return max(8, int(np.percentile(pixels, IN_RANGE)).bit_length())


def _decode(path: Path, data: bytes, *, upright: bool, deep: bool) -> np.ndarray:
    """Return (H, W, 3) BGR, uint16 for a 16-bit image and uint8 for the others."""
    flags = cv2.IMREAD_COLOR | (cv2.IMREAD_ANYDEPTH if deep else 0) | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path}: the image cannot be decoded", "replace or remove the file")
    return image


def as_rgb(image: ImageInput, name: str, bits: int | None = None) -> np.ndarray:
    """Convert an image of any kind to (H, W, 3) uint8 RGB.

    Args:
        image: a path, an array (H, W, 3) of uint8, a tensor (3, H, W) of uint8 on any device, or a PIL image of any
            mode except floats. Files and PIL images are rotated by their EXIF orientation and otherwise converted as in
            `read_image`.
        name: the name of the image in error messages.
        bits: as in `read_image`.

    Raises:
        UserError: the image is of another kind, or its file cannot be read.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image).expanduser(), upright=True, bits=bits)
    if isinstance(image, Image.Image):
        return _from_pillow(ImageOps.exif_transpose(image), name, bits)
    description = f"a {type(image).__name__}"
    if isinstance(image, Tensor):
        if image.dtype == uint8 and image.ndim == 3 and len(image) == 3 and image.numel():
            return np.ascontiguousarray(image.permute(1, 2, 0).numpy(force=True))
        description = f"a tensor of {image.dtype} and shape {tuple(image.shape)}"
    elif isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return np.ascontiguousarray(image)
        description = f"an array of {image.dtype} and shape {image.shape}"
    raise UserError(
        f"{name}: {description} is not an image",
        "pass a uint8 RGB array (H, W, 3), a uint8 RGB tensor (3, H, W), a PIL image or a path",
    )


def _from_pillow(image: Image.Image, name: str, bits: int | None) -> np.ndarray:
    if image.mode == "F":
        raise UserError(f"{name}: the range of a PIL image of floats is unknown", "scale the image to 0..255, mode L")
    try:
        if image.mode.startswith("I"):
            image = Image.fromarray(to_8_bits(_integers(image, name), bits))
        elif image.mode == "P":  # the palette may contain transparency
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes the pixels only here
        raise UserError(f"{name}: the image cannot be decoded ({error})", "replace or remove the file") from None


def _integers(image: Image.Image, name: str) -> np.ndarray:
    """Return the values of a PIL image of integers, (H, W) int64. Raises UserError."""
    try:
        return np.asarray(image).astype(np.int64)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name}: the image cannot be decoded ({error})", "replace or remove the file") from None


def write_image(path: Path, rgb: np.ndarray) -> None:
    """Write an image in the format of the path's suffix.

    Args:
        path: the file.
        rgb: (H, W, 3) uint8 RGB.

    Raises:
        UserError: the suffix is unknown, or the image is too large for the format (WebP: 16383 pixels per side).
    """
    _check_suffix(path, WRITTEN_SUFFIXES)
    is_encoded, data = cv2.imencode(path.suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    if not is_encoded:
        raise UserError(
            f"{path}: the format cannot store {rgb.shape[1]}x{rgb.shape[0]} pixels", "choose another suffix"
        )
    write_bytes(path, data.tobytes())


def find_images(inputs: Sequence[str], suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Find the image files that the inputs name, each file once and in the order of the inputs.

    Args:
        inputs: files, folders (their direct children) or glob patterns.
        suffixes: the suffixes of images. A folder or a pattern gives its files with these suffixes, sorted.

    Raises:
        UserError: an input gives no image.
    """
    return list(dict.fromkeys(path for entry in inputs for path in _find(entry, suffixes)))


def _find(entry: str, suffixes: Sequence[str]) -> list[Path]:
    path = Path(entry)
    if path.is_file():
        _check_suffix(path, suffixes)
        return [path]
    candidates = path.iterdir() if path.is_dir() else map(Path, glob.glob(entry, recursive=True))
    images = sorted(p for p in candidates if p.suffix.lower() in suffixes and p.is_file())
    if not images:
        problem = "the folder has no image" if path.is_dir() else "no such file, and the pattern matches no image"
        raise UserError(f"{entry}: {problem} ({' '.join(suffixes)})", "check the path")
    return images


def _check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path}: '{path.suffix}' is not an image suffix", f"use one of {' '.join(suffixes)}")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise _cannot_read(path, error) from None


def _cannot_read(path: Path, error: OSError | ValueError) -> UserError:
    # a path with a null byte raises ValueError
    reason = error.strerror if isinstance(error, OSError) else error
    return UserError(f"{path}: cannot read the image ({reason})", "check the path")


def _parse_header(path: Path, file: BinaryIO) -> Header:
    """Read the header. Refuse, before memory is allocated for pixels, files that a decoder would accept silently."""
    if file.seek(0, os.SEEK_END) == 0:
        raise UserError(f"{path}: the image file is empty", "replace or remove the file")
    file.seek(0)
    file.read(FIRST_BYTES)  # threads read from the disk in parallel; only one thread parses at a time
    file.seek(0)
    try:
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for corrupt metadata and large sizes; the size is checked below
            image = Image.open(file)
            is_deep = ";16" in str(image.tile) or image.mode[0] == "I"
            header = Header(*image.size, str(image.format), image.mode, is_deep, _orientation(image))
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: the image is too large ({error})", "scale the image down") from None
    except (OSError, ValueError, SyntaxError):
        raise UserError(f"{path}: the file is not an image, or is damaged", "replace or remove the file") from None
    if header.width * header.height > MAX_PIXELS:
        raise UserError(
            f"{path}: the image has {header.width}x{header.height} pixels; the limit is {MAX_PIXELS} pixels",
            "scale the image down",
        )
    if header.mode == "F":
        raise UserError(f"{path}: the range of float pixels is unknown", "convert the image to 8 or 16 bits")
    if header.format in ("JPEG", "MPO") and not _jpeg_has_end(file):
        raise UserError(f"{path}: the JPEG is truncated (no end-of-image marker)", "replace or remove the file")
    return header


def _orientation(image: Image.Image) -> int:
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))  # image.getexif would first decode a PNG
        orientation = exif.get(ORIENTATION)
    except (SyntaxError, ValueError, OSError):
        orientation = None
    is_known = isinstance(orientation, int) and orientation in range(1, 9)
    return orientation if is_known else 1  # corrupt metadata rotates nothing


def _jpeg_has_end(file: BinaryIO) -> bool:
    """Return whether a JPEG has its end-of-image marker.

    The marker is usually the last two bytes. Otherwise the function goes from marker to marker and skips each segment
    by its length, so that the end marker of an embedded thumbnail does not count.
    """
    file.seek(-2, os.SEEK_END)
    if file.read() == bytes((0xFF, _JPEG_END)):
        return True
    file.seek(0)
    data, position = file.read(), 2
    while marker := _JPEG_MARKER.search(data, position):
        if data[marker.end() - 1] == _JPEG_END:
            return True
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False
