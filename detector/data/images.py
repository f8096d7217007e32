"""Image files in and out, always (H, W, 3) uint8 RGB."""

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

FORMATS = {  # by suffix, as Pillow names them; MPO is JPEG with further pictures behind the first
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
# pictures by their suffix that are not read, so that they can be listed as such
OTHER_SUFFIXES = frozenset(
    {".avif", ".cr2", ".cr3", ".dcm", ".dng", ".heic", ".heif", ".j2k", ".jp2", ".jpe", ".jxl", ".nef", ".arw", ".pgm"}
    | {".pbm", ".ppm", ".pnm", ".psd", ".raw", ".svg", ".tga"}
) - set(SUFFIXES)
DECODED_BY_PILLOW = ("GIF", "HEIF", "I", "I;16S")  # formats, and modes of integers
IN_RANGE = 99.9  # per cent of a picture's values that its bits hold
MAX_PIXELS = 178_000_000  # half a gigabyte as RGB
ORIENTATION = ExifTags.Base.Orientation
FULL_BITS = 16  # of a deep picture whose values use the whole range

FIRST_BYTES = 1 << 16
_WARNINGS = threading.Lock()  # Python's filters of warnings are those of all threads

ImageInput = str | Path | np.ndarray | Image.Image | Tensor

_JPEG_END = 0xD9
# A JPEG marker: 0xFF and a code. Inside compressed data 0xFF is followed by 0 or a restart code (D0 to D7).
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Header:
    """What an image file says of itself.

    width and height are those of the stored pixels. format and mode are Pillow's names. is_deep: a colour has 16 bits.
    orientation is EXIF's: 1 where there is none, 2 to 8 for mirrored or turned pictures.
    """

    width: int
    height: int
    format: str
    mode: str
    is_deep: bool
    orientation: int

    def upright_size(self) -> tuple[int, int]:
        """(width, height) as a person sees the picture."""
        return (self.height, self.width) if 5 <= self.orientation <= 8 else (self.width, self.height)


def read_header(path: Path) -> Header:
    """Read the first bytes of a file, and of a JPEG the last two. Raises UserError as `read_image` does."""
    try:
        with path.open("rb") as file:
            return _parse_header(path, file)
    except (OSError, ValueError) as error:
        raise _cannot_read(path, error) from None


def read_image(path: Path, *, upright: bool = False, bits: int | None = FULL_BITS) -> np.ndarray:
    """Read (H, W, 3) uint8 RGB. Grey is tripled and alpha is dropped. Of an animation this is the first picture.

    Args:
        path: the file.
        upright: turn the picture as its EXIF orientation says: photographs as a person sees them. Annotations are
            often made on the stored pixels instead (COCO's are).
        bits: of a picture with 16 bits a colour, how many bits its values use (`bits_of`): 2^bits becomes 256. None
            takes the bits that this picture uses.

    Raises:
        UserError: the file is missing, empty, no image, cut short, or larger than MAX_PIXELS.
    """
    data = _read_bytes(path)
    header = _parse_header(path, io.BytesIO(data))
    if header.format in DECODED_BY_PILLOW or header.mode in DECODED_BY_PILLOW:
        with Image.open(io.BytesIO(data)) as image:
            return _from_pillow(ImageOps.exif_transpose(image) if upright else image, str(path), bits)
    image = _decode(path, data, upright=upright, deep=header.is_deep)
    return cv2.cvtColor(to_8_bits(image, bits), cv2.COLOR_BGR2RGB)


def bits_of(path: Path) -> int:
    """How many bits the values of a picture use, at least 8: 12 for values up to 4095. One value in a thousand may lie
    above, as hot pixels do. Raises UserError."""
    data = _read_bytes(path)
    if _parse_header(path, io.BytesIO(data)).mode in DECODED_BY_PILLOW:
        with Image.open(io.BytesIO(data)) as image:
            return _bits(_integers(image, str(path)))
    return _bits(_decode(path, data, upright=False, deep=True))


def to_8_bits(pixels: np.ndarray, bits: int | None) -> np.ndarray:
    """Scale pixels of more than 8 bits so that 2^bits becomes 256; None takes the bits that they use. Values above the
    range become 255."""
    if pixels.dtype == np.uint8:
        return pixels
    shift = (_bits(pixels) if bits is None else bits) - 8
    return np.clip(pixels >> shift, 0, 255).astype(np.uint8)


def _bits(pixels: np.ndarray) -> int:
    return max(8, int(np.percentile(pixels, IN_RANGE)).bit_length())


def _decode(path: Path, data: bytes, *, upright: bool, deep: bool) -> np.ndarray:
    """(H, W, 3) BGR, uint16 for a deep picture."""
    flags = cv2.IMREAD_COLOR | (cv2.IMREAD_ANYDEPTH if deep else 0) | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path}: the image cannot be decoded", "replace or remove it")
    return image


def as_rgb(image: ImageInput, name: str, bits: int | None = None) -> np.ndarray:
    """Return the pixels (H, W, 3) uint8 RGB of any kind of image.

    Args:
        image: a path (read by `read_image`, upright), an array (H, W, 3) of uint8, a tensor (3, H, W) of uint8 on any
            device, or a PIL image of any mode but floats (upright, grey tripled, alpha dropped).
        name: what errors call the image.
        bits: as in `read_image`.

    Raises:
        UserError: the image is anything else.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image).expanduser(), upright=True, bits=bits)
    if isinstance(image, Image.Image):
        return _from_pillow(ImageOps.exif_transpose(image), name, bits)
    what = f"a {type(image).__name__}"
    if isinstance(image, Tensor):
        if image.dtype == uint8 and image.ndim == 3 and len(image) == 3 and image.numel():
            return np.ascontiguousarray(image.permute(1, 2, 0).numpy(force=True))
        what = f"a tensor of {image.dtype} and shape {tuple(image.shape)}"
    elif isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return np.ascontiguousarray(image)
        what = f"an array of {image.dtype} and shape {image.shape}"
    raise UserError(
        f"{name}: {what} is no image",
        "give uint8 RGB as an array (H, W, 3) or a tensor (3, H, W), a PIL image or a path",
    )


def _from_pillow(image: Image.Image, name: str, bits: int | None) -> np.ndarray:
    if image.mode == "F":
        raise UserError(f"{name}: a PIL image of floats, whose range is unknown", "scale it to 0..255, mode L")
    try:
        if image.mode.startswith("I"):
            image = Image.fromarray(to_8_bits(_integers(image, name), bits))
        elif image.mode == "P":  # its transparency is alpha in another form
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # pixels are read only now
        raise UserError(f"{name}: the image cannot be decoded ({error})", "replace or remove it") from None


def _integers(image: Image.Image, name: str) -> np.ndarray:
    """The values of a PIL image of integers, (H, W) int64. Raises UserError."""
    try:
        return np.asarray(image).astype(np.int64)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name}: the image cannot be decoded ({error})", "replace or remove it") from None


def write_image(path: Path, rgb: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB in the format of the path's suffix. Raises UserError for an unknown suffix, and for
    an image that the format cannot hold (WebP ends at 16383 pixels a side)."""
    _check_suffix(path, WRITTEN_SUFFIXES)
    written, data = cv2.imencode(path.suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    if not written:
        raise UserError(f"{path}: {rgb.shape[1]}x{rgb.shape[0]} pixels do not fit the format", "choose another suffix")
    write_bytes(path, data.tobytes())


def find_images(inputs: Sequence[str], suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The image files that the inputs name, each once, in order: a file, a folder (its direct children) or a glob.

    A folder and a glob give what has one of the suffixes, sorted. Raises UserError where an input gives no image.
    """
    return list(dict.fromkeys(path for entry in inputs for path in _find(entry, suffixes)))


def _find(entry: str, suffixes: Sequence[str]) -> list[Path]:
    path = Path(entry)
    if path.is_file():
        _check_suffix(path, suffixes)
        return [path]
    candidates = path.iterdir() if path.is_dir() else map(Path, glob.glob(entry, recursive=True))
    found = sorted(p for p in candidates if p.suffix.lower() in suffixes and p.is_file())
    if not found:
        what = "the folder holds" if path.is_dir() else "there is no such file, and as a pattern it matches"
        raise UserError(f"{entry}: {what} no image ({' '.join(suffixes)})", "check the path")
    return found


def _check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path}: '{path.suffix}' is not an image suffix", f"use one of {' '.join(suffixes)}")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise _cannot_read(path, error) from None


def _cannot_read(path: Path, error: OSError | ValueError) -> UserError:
    """A ValueError comes of a path with a null byte."""
    reason = error.strerror if isinstance(error, OSError) else error
    return UserError(f"{path}: cannot read the image ({reason})", "check the path")


def _parse_header(path: Path, file: BinaryIO) -> Header:
    """Refuse, before any memory is taken for pixels, what decoders would take without a word."""
    if file.seek(0, os.SEEK_END) == 0:
        raise UserError(f"{path}: the image file is empty", "replace or remove it")
    file.seek(0)
    file.read(FIRST_BYTES)  # from the disk, which threads do side by side
    file.seek(0)
    try:
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of corrupt metadata, and of sizes that are checked below
            image = Image.open(file)
            is_deep = ";16" in str(image.tile) or image.mode[0] == "I"
            header = Header(*image.size, str(image.format), image.mode, is_deep, _orientation(image))
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: the image is too large ({error})", "scale it down") from None
    except (OSError, ValueError, SyntaxError):
        raise UserError(f"{path}: not an image, or a damaged one", "replace or remove it") from None
    if header.width * header.height > MAX_PIXELS:
        raise UserError(
            f"{path}: {header.width}x{header.height} pixels are over the limit of {MAX_PIXELS}", "scale the image down"
        )
    if header.mode == "F":
        raise UserError(f"{path}: the pixels are floats, whose range is unknown", "convert the image to 8 or 16 bits")
    if header.format in ("JPEG", "MPO") and not _jpeg_has_end(file):
        raise UserError(f"{path}: the JPEG is cut short (no end-of-image marker)", "replace or remove it")
    return header


def _orientation(image: Image.Image) -> int:
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))  # image.getexif would decode a PNG first
        orientation = exif.get(ORIENTATION)
    except (SyntaxError, ValueError, OSError):
        orientation = None
    is_known = isinstance(orientation, int) and orientation in range(1, 9)
    return orientation if is_known else 1  # corrupt metadata turn nothing


def _jpeg_has_end(file: BinaryIO) -> bool:
    """Look at the last two bytes. Where something else stands there, walk from marker to marker, over each segment's
    length, so that an embedded thumbnail's end does not count."""
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
