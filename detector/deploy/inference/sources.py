"""The inputs of inference: image files, and the frames of videos and cameras."""

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
DEFAULT_RATE = 25.0  # frames/s, if a video or a camera gives no rate

# this module reports unreadable files; OpenCV and FFmpeg must not report them too
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@dataclass(frozen=True, slots=True)
class Source:
    """An image file, a video file or a camera.

    Attributes:
        file: the path as the user gave it, or the number of a camera.
        name: the name of the results, without suffix.
    """

    file: Path | int
    name: str

    def __str__(self) -> str:
        return f"camera {self.file}" if isinstance(self.file, int) else str(self.file)

    @property
    def is_video(self) -> bool:
        """Whether the source is a video or a camera, and so has frames."""
        return isinstance(self.file, int) or self.file.suffix.lower() in VIDEO_SUFFIXES

    @property
    def drawing(self) -> str:
        """The file name of the annotated copy."""
        if isinstance(self.file, int) or self.is_video:
            return self.name + ".mp4"
        return self.name + (self.file.suffix if self.file.suffix.lower() in WRITTEN_SUFFIXES else ".png")


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file or a frame.

    Attributes:
        source: the source of the picture.
        image_id: 1, 2, ... over all sources.
        image: (H, W, 3) uint8 RGB.
        frame: the number of the frame, counted from 0, or None for an image file.
        rate: of the video, in frames/s.
    """

    source: Source
    image_id: int
    image: np.ndarray
    frame: int | None = None
    rate: float = DEFAULT_RATE


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """Return the images, videos and cameras of the inputs, in order and without repetitions.

    The log lists the other files of folders and globs.

    Args:
        inputs: files, folders and globs. A number is a camera if no file has this name.

    Raises:
        UserError: an input has no image and no video.
    """
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
    """Return the images and videos of an input. A hidden file is used only if the input is its path."""
    paths = find_images([entry], READABLE)
    visible = paths if Path(entry).is_file() else [path for path in paths if not path.name.startswith(".")]
    if not visible:
        raise UserError(f"{entry}: all images and videos are hidden files", "give the paths of the files")
    return visible


def _log_unused(entry: str) -> None:
    """Log each reason why entries of a folder, or files that a glob matches, are not used."""
    folder = Path(entry)
    if folder.is_file():
        return
    if folder.is_dir():
        paths = folder.iterdir()
    else:
        paths = (path for path in map(Path, glob.glob(entry, recursive=True)) if path.is_file())
    unused: dict[str, list[Path]] = {}
    for path in sorted(paths):
        if reason := _why_unused(path):
            unused.setdefault(reason, []).append(path)
    for reason, of_reason in unused.items():
        log.info("%s: %d not used (first: %s): %s", entry, len(of_reason), of_reason[0].name, reason)


def _why_unused(path: Path) -> str | None:
    """Return the reason, or None if the path has the suffix of an image or a video and is not hidden."""
    if path.is_dir():
        return "subfolders are not searched: give them as inputs, or give a glob such as 'FOLDER/**/*.jpg'"
    if not path.is_file():
        return "broken links, or devices"
    if path.name.startswith("."):
        return "hidden files"
    if path.suffix.lower() in READABLE:
        return None
    return f"the suffix is not one of {' '.join(READABLE)}"


def read_pictures(
    sources: Sequence[Source],
    max_frames: int | None,
    add_failure: Callable[[Source, UserError], None],
    bits: int | None = None,
) -> Iterator[Picture]:
    """Yield the pictures of the sources, in order.

    Args:
        sources: the sources.
        max_frames: the largest number of frames of each video and camera, or None.
        add_failure: called with a source that cannot be read completely, and the error.
        bits: the number of used bits of 16-bit images (see `read_image`).
    """
    image_id = 0
    for source in sources:
        try:
            if isinstance(source.file, Path) and not source.is_video:
                image_id += 1  # also for an unreadable image
                yield Picture(source, image_id, read_image(source.file, upright=True, bits=bits))
                continue
            with _opened(source) as capture:
                for frame, image in enumerate(_frames(capture, source, max_frames)):
                    image_id += 1
                    yield Picture(source, image_id, image, frame, _rate(capture))
        except UserError as error:
            add_failure(source, error)


@contextmanager
def _opened(source: Source) -> Generator[cv2.VideoCapture]:
    if isinstance(source.file, int):
        capture = cv2.VideoCapture(source.file)
    else:
        with utf8_path(source.file) as path:
            capture = cv2.VideoCapture(path)
    try:
        if not capture.isOpened():
            remedy = "replace or remove the file"
            if isinstance(source.file, int):
                remedy = "connect the camera, and end other programs that use it"
            raise UserError(f"{source}: cannot be opened as a video", remedy)
        yield capture
    finally:
        capture.release()


def _frames(capture: cv2.VideoCapture, source: Source, max_frames: int | None) -> Iterator[np.ndarray]:
    """Yield the frames. Raise UserError if a camera fails, or if over a second is missing compared to the header."""
    num_read = 0
    while max_frames is None or num_read < max_frames:
        is_read, image = capture.read()
        if not is_read:
            break
        num_read += 1
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    else:
        return
    if isinstance(source.file, int) or num_read == 0:
        raise UserError(f"{source}: no frame can be read after {num_read} frames", "check the file or the camera")
    num_frames = round(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if num_read < num_frames - _rate(capture):  # some containers only estimate the number
        raise UserError(
            f"{source}: only {num_read} of {num_frames} frames can be read",
            "replace the file, which is damaged or incomplete",
        )


def _rate(capture: cv2.VideoCapture) -> float:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if 0 < rate < 1000 else DEFAULT_RATE
