"""The thorough part of the data check, which decodes every image file of a data set.

The check writes nothing into the folders of the images.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from detector.core.errors import UserError
from detector.data.checks.findings import Findings
from detector.data.dataset import Record
from detector.data.headers import look_at_files
from detector.data.images import FORMATS, Header, read_header, read_image
from detector.geometry.boxes import pairwise_iou

SAME_OBJECT = 0.9  # the IoU from which two boxes count as the same object
SAME_SCENE = 0.95  # the correlation from which two thumbnails count as the same scene; different COCO images: < 0.8
THUMBNAIL = 16
BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of decoding an image file.

    Attributes:
        header: the header, or None for an image that cannot be decoded.
        error: the problem of an image that cannot be decoded, otherwise None.
        digest: the SHA-256 checksum of the bytes.
        thumbnail: the upright image as THUMBNAIL x THUMBNAIL gray bytes, in hexadecimal digits.
    """

    header: Header | None
    error: str | None
    digest: str
    thumbnail: str


def look(path: Path) -> Verdict:
    """Decode an image file. The function raises nothing: the verdict has the error of an unreadable image."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        header = read_header(path)
        gray = cv2.cvtColor(read_image(path, upright=True), cv2.COLOR_RGB2GRAY)
    except UserError as error:
        return Verdict(None, error.problem, digest, "")
    except OSError as error:
        return Verdict(None, f"{path}: cannot read the image ({error.strerror})", "", "")
    thumbnail = cv2.resize(gray, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return Verdict(header, None, digest, thumbnail.tobytes().hex())


def look_at_all(paths: Sequence[Path], cache: Path, advance: Callable[[], None]) -> dict[Path, Verdict]:
    """Return the verdict of each file. The cache gives the verdicts for files that have not changed.

    Args:
        paths: the image files.
        cache: the JSON file that stores the verdicts.
        advance: is called after each file.
    """

    def load(entry: dict) -> Verdict:
        header = entry["header"] and Header(**entry["header"])
        return Verdict(header, entry["error"], entry["digest"], entry["thumbnail"])

    # a file that could not be opened is tried again by the next call
    def dump(verdict: Verdict) -> dict | None:
        return asdict(verdict) if verdict.digest else None

    return dict(zip(paths, look_at_files(paths, look, cache, load=load, dump=dump, advance=advance), strict=True))


def report_files(records: Sequence[Record], verdicts: dict[Path, Verdict], findings: Findings) -> None:
    """Report damaged, misnamed, rotated, gray, transparent, CMYK and repeated image files.

    Args:
        records: the records of the images.
        verdicts: the verdict of each image file.
        findings: receives the findings.
    """
    verdict_of = [verdicts[record.path] for record in records]
    headers = [verdict.header for verdict in verdict_of]

    def add(kind: str, test: Callable[[Header, Record], bool], text: Callable[[Header, Record], str]) -> None:
        pairs = [(h, record) for h, record in zip(headers, records, strict=True) if h and test(h, record)]
        findings.add(kind, range(len(pairs)), lambda i: f"{pairs[i][1].path}: {text(*pairs[i])}")

    def mode(header: Header, _: Record) -> str:
        return f"the mode is {header.mode}"

    def first_with_the_bytes(r: Record) -> Path:
        return first.setdefault(verdicts[r.path].digest, r.path)

    first: dict[str, Path] = {}
    findings.add("image_damaged", [i for i, h in enumerate(headers) if h is None], lambda i: str(verdict_of[i].error))
    add(
        "image_misnamed",
        lambda h, r: h.format not in FORMATS.get(r.path.suffix.lower(), ()),
        lambda h, r: f"the format is {h.format}",
    )
    add("image_turned", lambda h, r: h.orientation != 1, lambda h, r: f"the EXIF orientation is {h.orientation}")
    add("image_grey", lambda h, r: h.mode in ("1", "L", "I", "F") or h.mode.startswith("I;"), mode)
    add("image_alpha", lambda h, r: h.mode in ("RGBA", "LA", "PA"), mode)
    add("image_cmyk", lambda h, r: h.mode == "CMYK", mode)
    add(
        "image_same",
        lambda h, r: first_with_the_bytes(r) != r.path,
        lambda h, r: f"the same as {first_with_the_bytes(r)}",
    )


def report_overlaps(records: Sequence[Record], class_names: Sequence[str], findings: Findings) -> None:
    """Report pairs of boxes whose overlap shows that they mark the same object. Crowds are left out.

    Args:
        records: the records of the images.
        class_names: the name of each class.
        findings: receives the findings.
    """
    same, conflicting = [], []
    for record in records:
        order = np.flatnonzero(~record.crowd)
        boxes = torch.from_numpy(record.boxes[order])
        for a, b in (pairwise_iou(boxes, boxes).triu(1) >= SAME_OBJECT).nonzero().tolist():
            first, second = (class_names[record.labels[order[i]]] for i in (a, b))
            corners = [" ".join(f"{value:.6g}" for value in boxes[i].tolist()) for i in (a, b)]
            text = f"{record.path.name}: {first} at {corners[0]} and {second} at {corners[1]}"
            (same if first == second else conflicting).append(text)
    findings.add("object_twice", range(len(same)), same.__getitem__)
    findings.add("object_conflict", range(len(conflicting)), conflicting.__getitem__)


def report_leaks(
    train: Sequence[Record], val: Sequence[Record], verdicts: dict[Path, Verdict], findings: Findings
) -> None:
    """Report the images of `val` that `train` contains too: the same bytes, or another image of the same scene.

    Args:
        train: the records of the training set.
        val: the records of the validation set.
        verdicts: the verdict of each image file.
        findings: receives the findings.
    """
    known = {verdicts[r.path].digest: r.path for r in reversed(train) if verdicts[r.path].header}  # the first image
    same = [i for i, record in enumerate(val) if verdicts[record.path].digest in known]
    findings.add("image_leaked", same, lambda i: f"{val[i].path}: the same as {known[verdicts[val[i].path].digest]}")
    similarity, nearest = _most_similar(*([verdicts[record.path] for record in records] for records in (val, train)))
    similar = np.setdiff1d(np.flatnonzero(similarity >= SAME_SCENE), same)
    findings.add("image_alike", similar, lambda i: f"{val[i].path}: similar to {train[nearest[i]].path}")


def _most_similar(verdicts: Sequence[Verdict], others: Sequence[Verdict]) -> tuple[np.ndarray, np.ndarray]:
    """Return the greatest correlation (N,) of each thumbnail with the others, and the index (N,) of that other."""

    def normalized(verdicts: Sequence[Verdict]) -> np.ndarray:
        gray = np.zeros((len(verdicts), THUMBNAIL**2), np.float32)
        for row, verdict in zip(gray, verdicts, strict=True):
            if verdict.thumbnail:
                row[:] = np.frombuffer(bytes.fromhex(verdict.thumbnail), np.uint8)
        gray -= gray.mean(axis=1, keepdims=True)
        return gray / np.maximum(np.linalg.norm(gray, axis=1, keepdims=True), 1)  # a blank image is similar to no other

    columns, similarity, nearest = normalized(others).T, [np.empty(0)], [np.empty(0, np.int64)]
    for start in range(0, len(verdicts), BLOCK):
        block = normalized(verdicts[start : start + BLOCK]) @ columns
        similarity.append(block.max(axis=1))
        nearest.append(block.argmax(axis=1))
    return np.concatenate(similarity), np.concatenate(nearest)
