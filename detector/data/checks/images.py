"""Images as annotations name them: which are there, can be read and have the annotated size."""

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
    """The N images of a data set: names in the folder (as written where there is no such file); usable (N,) bool; sizes
    (N, 2) int64 width and height as annotated, 0 where not usable; is_deep (N,) bool, 16 bits a colour."""

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
        written: the images' names in the annotations.
        sizes: (width, height) as annotated; 0 where the annotations do not say, which takes the file's own.
        folder: where the images lie.
        source: the file that messages name.
        findings: takes what is wrong or odd.
        headers: those that are known already, by name.
        upright: sizes are meant as the EXIF orientation shows the image; else either way will do.

    Raises:
        UserError: no image is there, or none can be used.
    """
    is_outside = [not folder.holds(name) for name in written]
    found = ["" if outside else folder.find(name) or "" for name, outside in zip(written, is_outside, strict=True)]
    if not any(is_outside) and not any(found):
        raise UserError(f"{folder.path(written[0])}: no such image, yet {source} lists it", "check the images folder")
    usable = np.ones(len(written), dtype=bool)
    reasons: list[str] = []

    def leave_out(kind: str, wrong: Sequence[bool] | np.ndarray, describe: Callable[[int], str]) -> None:
        which = np.flatnonzero(usable & np.array(wrong, dtype=bool))
        findings.add(kind, which, describe)
        usable[which] = False
        reasons.extend(describe(i) for i in which[:1])

    leave_out(
        "image_outside",
        is_outside,
        lambda i: f"{source}: image '{written[i]}' leads outside the images folder {folder.root}",
    )
    leave_out(
        "image_missing",
        [not name for name in found],
        lambda i: f"{folder.path(written[i])}: no such image, yet {source} lists it",
    )
    first: dict[Any, int] = {}
    leave_out(
        "image_twice",
        [bool(name) and first.setdefault(name, i) != i for i, name in enumerate(found)],
        lambda i: f"{source}: image '{written[i]}' is listed twice",
    )
    renamed = [i for i in np.flatnonzero(usable) if found[i] != written[i]]
    findings.add("image_renamed", renamed, lambda i: f"{source}: '{written[i]}' is {folder.path(found[i])}")

    unknown = [found[i] for i in np.flatnonzero(usable) if found[i] not in headers]
    headers = headers | dict(zip(unknown, read_headers([folder.path(name) for name in unknown]), strict=True))
    of_image = [headers.get(name) for name in found]
    leave_out(
        "image_unreadable",
        [isinstance(header, str) for header in of_image],
        lambda i: f"{folder.path(found[i])}: {of_image[i]}",
    )
    annotated = np.zeros((len(written), 2), dtype=np.int64)
    pixels: dict[int, str] = {}
    is_deep, sizeless, unlike = np.zeros(len(written), dtype=bool), [], np.zeros(len(written), dtype=bool)
    for i in np.flatnonzero(usable):
        header = of_image[i]
        assert isinstance(header, Header)
        pixels[i] = f"{header.width}x{header.height}"
        stored, shown = (header.width, header.height), header.upright_size()
        annotated[i] = sizes[i] if 0 not in sizes[i] else shown if upright else stored
        is_deep[i] = header.is_deep
        unlike[i] = tuple(annotated[i]) != shown and (upright or tuple(annotated[i]) != stored)
        if 0 in sizes[i]:
            sizeless.append(i)
    findings.add("image_size", sizeless, lambda i: f"{source}: image '{written[i]}'")
    leave_out(
        "image_unlike",
        unlike,
        lambda i: (
            f"{folder.path(found[i])}: {pixels[i]} pixels, its annotations say {annotated[i][0]}x{annotated[i][1]}"
        ),
    )
    if not usable.any():
        raise UserError(f"{source}: none of its images can be used ({reasons[0]})", "check the images folder")
    annotated[~usable] = 0
    names = [name or w for name, w in zip(found, written, strict=True)]
    return CheckedImages(names, usable, annotated, is_deep)
