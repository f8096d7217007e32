"""Image files in and out, always (H, W, 3) uint8 RGB."""

import glob
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps
from torch import Tensor, uint8

from detector.errors import UserError

FORMATS = {  # by suffix, as Pillow names them; MPO is JPEG with further pictures behind the first
    ".bmp": ("BMP", "DIB"),
    ".jpeg": ("JPEG", "MPO"),
    ".jpg": ("JPEG", "MPO"),
    ".png": ("PNG",),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
    ".webp": ("WEBP",),
}
SUFFIXES = tuple(FORMATS)
MAX_PIXELS = 178_000_000  # half a gigabyte as RGB
ORIENTATION = ExifTags.Base.Orientation

ImageInput = str | Path | np.ndarray | Image.Image | Tensor

_JPEG_END = 0xD9
# A JPEG marker: 0xFF and a code. Inside compressed data 0xFF is followed by 0 or a restart code (D0 to D7).
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself: width and height of the stored pixels; format and mode as Pillow names them; whether
    a colour has 16 bits; the EXIF orientation, 1 where there is none, 2 to 8 for mirrored or turned."""

    width: int
    height: int
    format: str
    mode: str
    is_deep: bool
    orientation: int

    def upright_size(self) -> tuple[int, int]:
        """(width, height) as a person sees it."""
        return (self.height, self.width) if 5 <= self.orientation <= 8 else (self.width, self.height)


def read_header(path: Path) -> Header:
    """Raises UserError as `read_image` does, before any memory is taken for pixels."""
    return _parse_header(path, _read_bytes(path).tobytes())


def read_image(path: Path, *, upright: bool = False) -> np.ndarray:
    """(H, W, 3) uint8 RGB: grey is tripled, alpha dropped, 16 bit reduced to 8.

    The stored pixels, or turned `upright` as their EXIF orientation says: photographs as a person sees them, but
    annotations are often made on the stored pixels (COCO's are).
    Raises UserError if the file is missing, empty, no image, cut short, or larger than MAX_PIXELS.
    """
    data = _read_bytes(path)
    _parse_header(path, data.tobytes())
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION))
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{path}: the image cannot be decoded; replace or remove it")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def as_rgb(image: ImageInput, name: str) -> np.ndarray:
    """The pixels (H, W, 3) uint8 RGB of a path (by `read_image`, upright), an array like that, a tensor (3, H, W) uint8
    on any device, or a PIL image of any mode but floats, upright (grey is tripled, alpha dropped, 16 bit reduced to 8).

    Raises UserError, which calls the image `name`, for anything else.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image), upright=True)
    if isinstance(image, Image.Image):
        return _from_pillow(image, name)
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
        f"{name}: {what} is no image; give uint8 RGB as an array (H, W, 3) or a tensor (3, H, W), a PIL image or a path"
    )


def _from_pillow(image: Image.Image, name: str) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UserError(f"{name}: a PIL image of floats, whose range is unknown; scale it to 0..255, mode L")
    try:
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
        elif image.mode == "P":  # its transparency is alpha in another form
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))
    except OSError as error:  # pixels are read only now
        raise UserError(f"{name}: the PIL image cannot be decoded ({error}); replace its file") from None


def write_image(path: Path, rgb: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB in the format of the path's suffix. Raises UserError for an unknown suffix, and for
    an image that the format cannot hold (WebP ends at 16383 pixels a side)."""
    _check_suffix(path, SUFFIXES)
    written, data = cv2.imencode(path.suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    if not written:
        raise UserError(f"{path}: {rgb.shape[1]}x{rgb.shape[0]} pixels do not fit the format; choose another suffix")
    path.write_bytes(data.tobytes())


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
        raise UserError(f"{entry}: {what} no image ({' '.join(suffixes)}); check the path")
    return found


def _check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path}: '{path.suffix}' is not an image suffix; use one of {' '.join(suffixes)}")


def _read_bytes(path: Path) -> np.ndarray:
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except (OSError, ValueError) as error:  # the latter: a path with a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot read the image ({reason}); check the path") from None
    if data.size == 0:
        raise UserError(f"{path}: the image file is empty; replace or remove it")
    return data


def _parse_header(path: Path, data: bytes) -> Header:
    """Refuses, before any memory is taken for pixels, what decoders would take without a word."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of corrupt metadata, and of sizes that are checked below
            with Image.open(io.BytesIO(data)) as image:
                is_deep = ";16" in str(image.tile) or image.mode[0] == "I"
                header = Header(*image.size, image.format, image.mode, is_deep, _orientation(image))
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: the image is too large ({error}); scale it down") from None
    except (OSError, ValueError, SyntaxError):
        raise UserError(f"{path}: not an image, or a damaged one; replace or remove it") from None
    if header.width * header.height > MAX_PIXELS:
        raise UserError(
            f"{path}: {header.width}x{header.height} pixels are over the limit of {MAX_PIXELS}; scale the image down"
        )
    if header.format in ("JPEG", "MPO") and not _jpeg_has_end(data):
        raise UserError(f"{path}: the JPEG is cut short (no end-of-image marker); replace or remove it")
    return header


def _orientation(image: Image.Image) -> int:
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))  # image.getexif would decode a PNG first
        orientation = exif.get(ORIENTATION)
    except (SyntaxError, ValueError, OSError):
        orientation = None
    return orientation if orientation in range(1, 9) else 1  # corrupt metadata turn nothing


def _jpeg_has_end(data: bytes) -> bool:
    """Walk from marker to marker, over each segment's length, so that an embedded thumbnail's end does not count."""
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        if data[marker.end() - 1] == _JPEG_END:
            return True
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False
