"""What there is to look at: image files, videos frame by frame, cameras."""

import glob
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from detector.core.errors import UserError
from detector.core.files import unique_names, utf8_path
from detector.data.images import SUFFIXES, WRITTEN_SUFFIXES, find_images, read_image

log = logging.getLogger(__name__)
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
READABLE = (*SUFFIXES, *VIDEO_SUFFIXES)
USUAL_RATE = 25.0  # frames/s, where a video or a camera does not say

# what cannot be read is said once, by us
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@dataclass(frozen=True, slots=True)
class Source:
    """file: its path as the user named it, or a camera's number; name: what its results are called, without suffix."""

    file: Path | int
    name: str

    def __str__(self) -> str:
        return f"camera {self.file}" if isinstance(self.file, int) else str(self.file)

    @property
    def is_video(self) -> bool:
        """Or a camera: it has frames."""
        return isinstance(self.file, int) or self.file.suffix.lower() in VIDEO_SUFFIXES

    @property
    def drawing(self) -> str:
        """The file name of its annotated copy."""
        if isinstance(self.file, int) or self.is_video:
            return self.name + ".mp4"
        return self.name + (self.file.suffix if self.file.suffix.lower() in WRITTEN_SUFFIXES else ".png")


@dataclass(frozen=True, slots=True)
class Picture:
    """image (H, W, 3) uint8 RGB; image_id 1, 2, ... over all sources; frame counts from 0, None for an image file; rate
    in frames/s."""

    source: Source
    image_id: int
    image: np.ndarray
    frame: int | None = None
    rate: float = USUAL_RATE


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The images and videos of files, folders and globs, and the cameras of numbers (where no file is called so), each
    once, in order. The log accounts for what a folder or a glob holds beside them. Raises UserError where an input
    gives none."""
    files: dict[Path | int, None] = {}
    for entry in map(os.path.expanduser, inputs):
        if entry.isdecimal() and not Path(entry).exists():
            files[int(entry)] = None
        else:
            _log_unused(entry)
            files |= dict.fromkeys(_find(entry))
    stems = [f"camera_{file}" if isinstance(file, int) else file.stem for file in files]
    return [Source(*pair) for pair in zip(files, unique_names(stems), strict=True)]


def _find(entry: str) -> list[Path]:
    """The images and videos of an input. Hidden files count only where the input is the file itself."""
    found = find_images([entry], READABLE)
    used = found if Path(entry).is_file() else [path for path in found if not path.name.startswith(".")]
    if not used:
        raise UserError(f"{entry}: all images and videos are hidden files", "name the files themselves")
    return used


def _log_unused(entry: str) -> None:
    """A line for each reason why something in a folder, or a file that a glob matches, is not used."""
    path = Path(entry)
    if path.is_file():
        return
    found = path.iterdir() if path.is_dir() else (p for p in map(Path, glob.glob(entry, recursive=True)) if p.is_file())
    unused: dict[str, list[Path]] = {}
    for one in sorted(found):
        if reason := _why_unused(one):
            unused.setdefault(reason, []).append(one)
    for reason, paths in unused.items():
        log.info("%s: %d not used, %s (first: %s)", entry, len(paths), reason, paths[0].name)


def _why_unused(path: Path) -> str | None:
    """None where the path is an image or a video by its name, and not hidden."""
    if path.is_dir():
        return "subfolders; name them as inputs, or give a pattern such as 'FOLDER/**/*.jpg'"
    if not path.is_file():
        return "links that lead nowhere, or devices"
    if path.name.startswith("."):
        return "hidden files"
    if path.suffix.lower() in READABLE:
        return None
    return f"neither images nor videos by their names ({' '.join(READABLE)})"


def read_pictures(
    sources: Sequence[Source],
    max_frames: int | None,
    leave_out: Callable[[Source, UserError], None],
    bits: int | None = None,
) -> Iterator[Picture]:
    """Give one picture after the other.

    Args:
        sources: where the pictures come from.
        max_frames: at most so many of each video and camera.
        leave_out: called with a source that cannot be read, or not to its end, and the reason.
        bits: what scales pictures of 16 bits (see `read_image`).
    """
    image_id = 0
    for source in sources:
        try:
            if isinstance(source.file, Path) and not source.is_video:
                image_id += 1  # whether it can be read or not
                yield Picture(source, image_id, read_image(source.file, upright=True, bits=bits))
                continue
            with _opened(source) as capture:
                for frame, image in enumerate(_frames(capture, source, max_frames)):
                    image_id += 1
                    yield Picture(source, image_id, image, frame, _rate(capture))
        except UserError as error:
            leave_out(source, error)


@contextmanager
def _opened(source: Source) -> Generator[cv2.VideoCapture]:
    if isinstance(source.file, int):
        capture = cv2.VideoCapture(source.file)
    else:
        with utf8_path(source.file) as path:
            capture = cv2.VideoCapture(path)
    try:
        if not capture.isOpened():
            remedy = "check that it is connected and free" if isinstance(source.file, int) else "replace or remove it"
            raise UserError(f"{source}: cannot be opened as a video", f"{remedy}")
        yield capture
    finally:
        capture.release()


def _frames(capture: cv2.VideoCapture, source: Source, max_frames: int | None) -> Iterator[np.ndarray]:
    """Raises UserError where the frames end more than a second before the header says so, or a camera fails."""
    done = 0
    while max_frames is None or done < max_frames:
        is_read, image = capture.read()
        if not is_read:
            break
        done += 1
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    else:
        return
    if isinstance(source.file, int) or done == 0:
        raise UserError(f"{source}: no frame can be read after {done}", "check the file or the camera")
    promised = round(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if done < promised - _rate(capture):  # some containers estimate the number
        raise UserError(f"{source}: only {done} of {promised} frames can be read", "the file is damaged or cut short")


def _rate(capture: cv2.VideoCapture) -> float:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if 0 < rate < 1000 else USUAL_RATE
