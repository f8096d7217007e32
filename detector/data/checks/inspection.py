"""Every image file of a data set, opened and decoded: the thorough part of the data check. Nothing is written beside
the images."""

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

ONE_OBJECT = 0.9  # IoU from which two boxes are taken to mean the same object
ONE_SCENE = 0.95  # correlation from which two thumbnails are; different COCO images have less than 0.8
THUMBNAIL = 16
BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an image file holds: its header, or the error that it gives when decoded; the SHA-256 of its bytes; a
    picture of THUMBNAIL x THUMBNAIL grey bytes, upright, in hexadecimal digits."""

    header: Header | None
    error: str | None
    digest: str
    thumbnail: str


def look(path: Path) -> Verdict:
    """Raises nothing: an image that cannot be read has its error."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        header = read_header(path)
        grey = cv2.cvtColor(read_image(path, upright=True), cv2.COLOR_RGB2GRAY)
    except UserError as error:
        return Verdict(None, error.problem, digest, "")
    except OSError as error:
        return Verdict(None, f"{path}: cannot be read ({error.strerror})", "", "")
    thumbnail = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return Verdict(header, None, digest, thumbnail.tobytes().hex())


def look_at_all(paths: Sequence[Path], cache: Path, advance: Callable[[], None]) -> dict[Path, Verdict]:
    """Each file's verdict, of an earlier call (kept in the JSON file `cache`) where the file has not changed since.
    `advance` is called after each file."""

    def load(kept: dict) -> Verdict:
        return Verdict(kept["header"] and Header(**kept["header"]), kept["error"], kept["digest"], kept["thumbnail"])

    # a file that could not be opened may be next time
    def dump(verdict: Verdict) -> dict | None:
        return asdict(verdict) if verdict.digest else None

    return dict(zip(paths, look_at_files(paths, look, cache, load=load, dump=dump, advance=advance), strict=True))


def report_files(records: Sequence[Record], verdicts: dict[Path, Verdict], findings: Findings) -> None:
    """Adds what the files of these records have that a training stumbles over, or should be known."""
    seen = [verdicts[record.path] for record in records]
    headers = [verdict.header for verdict in seen]

    def add(kind: str, test: Callable[[Header, Record], bool], text: Callable[[Header, Record], str]) -> None:
        pairs = [(h, record) for h, record in zip(headers, records, strict=True) if h and test(h, record)]
        findings.add(kind, range(len(pairs)), lambda i: f"{pairs[i][1].path}: {text(*pairs[i])}")

    def first_with_the_bytes(r: Record) -> Path:
        return first.setdefault(verdicts[r.path].digest, r.path)

    first: dict[str, Path] = {}
    findings.add("image_damaged", [i for i, h in enumerate(headers) if h is None], lambda i: str(seen[i].error))
    add("image_misnamed", lambda h, r: h.format not in FORMATS.get(r.path.suffix.lower(), ()), lambda h, r: h.format)
    add("image_turned", lambda h, r: h.orientation != 1, lambda h, r: f"orientation {h.orientation}")
    add("image_grey", lambda h, r: h.mode in ("1", "L", "I", "F") or h.mode.startswith("I;"), lambda h, r: h.mode)
    add("image_alpha", lambda h, r: h.mode in ("RGBA", "LA", "PA"), lambda h, r: h.mode)
    add("image_cmyk", lambda h, r: h.mode == "CMYK", lambda h, r: h.mode)
    add(
        "image_same",
        lambda h, r: first_with_the_bytes(r) != r.path,
        lambda h, r: f"the same as {first_with_the_bytes(r)}",
    )


def report_overlaps(records: Sequence[Record], class_names: Sequence[str], findings: Findings) -> None:
    """Adds pairs of boxes in one image that are one object by their overlap, crowds left out."""
    same, conflicting = [], []
    for record in records:
        order = np.flatnonzero(~record.crowd)
        boxes = torch.from_numpy(record.boxes[order])
        for a, b in (pairwise_iou(boxes, boxes).triu(1) >= ONE_OBJECT).nonzero().tolist():
            first, second = (class_names[record.labels[order[i]]] for i in (a, b))
            corners = [" ".join(f"{value:.6g}" for value in boxes[i].tolist()) for i in (a, b)]
            text = f"{record.path.name}: {first} at {corners[0]} and {second} at {corners[1]}"
            (same if first == second else conflicting).append(text)
    findings.add("object_twice", range(len(same)), same.__getitem__)
    findings.add("object_conflict", range(len(conflicting)), conflicting.__getitem__)


def report_leaks(
    train: Sequence[Record], val: Sequence[Record], verdicts: dict[Path, Verdict], findings: Findings
) -> None:
    """Adds the images of `val` that `train` has as well: the same bytes, or another picture of the same scene."""
    known = {verdicts[r.path].digest: r.path for r in reversed(train) if verdicts[r.path].header}  # the first
    same = [i for i, record in enumerate(val) if verdicts[record.path].digest in known]
    findings.add("image_leaked", same, lambda i: f"{val[i].path}: the same as {known[verdicts[val[i].path].digest]}")
    likeness, nearest = _most_alike(*([verdicts[record.path] for record in records] for records in (val, train)))
    alike = np.setdiff1d(np.flatnonzero(likeness >= ONE_SCENE), same)
    findings.add("image_alike", alike, lambda i: f"{val[i].path}: like {train[nearest[i]].path}")


def _most_alike(verdicts: Sequence[Verdict], others: Sequence[Verdict]) -> tuple[np.ndarray, np.ndarray]:
    """Of each, the greatest correlation of its thumbnail with one of the others', and which that is, (N,) both."""

    def normalised(verdicts: Sequence[Verdict]) -> np.ndarray:
        grey = np.zeros((len(verdicts), THUMBNAIL**2), np.float32)
        for row, verdict in zip(grey, verdicts, strict=True):
            if verdict.thumbnail:
                row[:] = np.frombuffer(bytes.fromhex(verdict.thumbnail), np.uint8)
        grey -= grey.mean(axis=1, keepdims=True)
        return grey / np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1)  # a blank picture is like no other

    theirs, likeness, nearest = normalised(others).T, [np.empty(0)], [np.empty(0, np.int64)]
    for start in range(0, len(verdicts), BLOCK):
        block = normalised(verdicts[start : start + BLOCK]) @ theirs
        likeness.append(block.max(axis=1))
        nearest.append(block.argmax(axis=1))
    return np.concatenate(likeness), np.concatenate(nearest)
