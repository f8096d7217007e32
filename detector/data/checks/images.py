"""The checks of the images that annotations name: the file exists, can be read, and has the annotated size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.core.errors import UserError
from detector.data.checks.findings import Findings
from detector.data.formats.folders import Folder
from detector.data.headers import read_headers
from detector.data.images import Header


@dataclass(frozen=True, slots=True)
class CheckedImages:
    """The N images of a data set.

    Attributes:
        names: the names of the files in the folder, or the annotated name where the file is missing.
        usable: (N,) bool, whether the image can be used.
        sizes: (N, 2) int64, the annotated width and height in pixels, 0 for unusable images.
        is_deep: (N,) bool, whether the image has 16 bits per channel.
    """

    names: list[str]
    usable: np.ndarray
    sizes: np.ndarray
    is_deep: np.ndarray


def check_images(
    written: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    folder: Folder,
    source: Path,
    findings: Findings,
    *,
    headers: dict[str, Header | str],
    upright: bool,
) -> CheckedImages:
    """Find the images and compare them with their annotations.

    Args:
        written: the names of the images in the annotations.
        sizes: the annotated (width, height) in pixels. Where a side is 0, the size of the file is used.
        folder: the folder of the images.
        source: the annotation file, for messages.
        findings: receives the problems of the images.
        headers: the headers that have been read already, by name.
        upright: whether the sizes refer to the image as its EXIF orientation shows it. Otherwise they may refer to the
            shown image or to the stored pixels.

    Returns:
        The images in the order of `written`.

    Raises:
        UserError: no image exists, or no image can be used.
    """
    is_outside = [not folder.holds(name) for name in written]
    matches = ["" if outside else folder.find(name) or "" for name, outside in zip(written, is_outside, strict=True)]
    if not any(is_outside) and not any(matches):
        raise UserError(f"{folder.path(written[0])}: no such image, but {source} lists it", "check the images folder")
    usable = np.ones(len(written), dtype=bool)
    reasons: list[str] = []

    def leave_out(kind: str, is_wrong: Sequence[bool] | np.ndarray, describe: Callable[[int], str]) -> None:
        indices = np.flatnonzero(usable & np.array(is_wrong, dtype=bool))
        findings.add(kind, indices, describe)
        usable[indices] = False
        reasons.extend(describe(i) for i in indices[:1])

    leave_out(
        "image_outside",
        is_outside,
        lambda i: f"{source}: image '{written[i]}' is outside the images folder {folder.root}",
    )
    leave_out(
        "image_missing",
        [not name for name in matches],
        lambda i: f"{folder.path(written[i])}: no such image, but {source} lists it",
    )
    first: dict[Any, int] = {}
    leave_out(
        "image_twice",
        [bool(name) and first.setdefault(name, i) != i for i, name in enumerate(matches)],
        lambda i: f"{source}: image '{written[i]}' is listed twice",
    )
    renamed = [i for i in np.flatnonzero(usable) if matches[i] != written[i]]
    findings.add(
        "image_renamed", renamed, lambda i: f"{source}: image '{written[i]}' is the file {folder.path(matches[i])}"
    )

    unknown = [matches[i] for i in np.flatnonzero(usable) if matches[i] not in headers]
    headers = headers | dict(zip(unknown, read_headers([folder.path(name) for name in unknown]), strict=True))
    header_of = [headers.get(name) for name in matches]
    leave_out(
        "image_unreadable",
        [isinstance(header, str) for header in header_of],
        lambda i: f"{folder.path(matches[i])}: {header_of[i]}",
    )
    annotated = np.zeros((len(written), 2), dtype=np.int64)
    pixels: dict[int, str] = {}
    is_deep, sizeless, is_unlike = np.zeros(len(written), dtype=bool), [], np.zeros(len(written), dtype=bool)
    for i in np.flatnonzero(usable):
        header = header_of[i]
        assert isinstance(header, Header)
        pixels[i] = f"{header.width}x{header.height}"
        stored, shown = (header.width, header.height), header.upright_size()
        annotated[i] = sizes[i] if 0 not in sizes[i] else shown if upright else stored
        is_deep[i] = header.is_deep
        is_unlike[i] = tuple(annotated[i]) != shown and (upright or tuple(annotated[i]) != stored)
        if 0 in sizes[i]:
            sizeless.append(i)
    findings.add("image_size", sizeless, lambda i: f"{source}: image '{written[i]}'")
    leave_out(
        "image_unlike",
        is_unlike,
        lambda i: (
            f"{folder.path(matches[i])}: the image has {pixels[i]} pixels, but its annotated size is "
            f"{annotated[i][0]}x{annotated[i][1]}"
        ),
    )
    if not usable.any():
        raise UserError(f"{source}: no image can be used (first problem: {reasons[0]})", "check the images folder")
    annotated[~usable] = 0
    names = [name or w for name, w in zip(matches, written, strict=True)]
    return CheckedImages(names, usable, annotated, is_deep)
