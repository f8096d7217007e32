"""Lines of YOLO labels: `class cx cy w h`, a polygon, or a box with keypoints or a score behind it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detector.core.errors import UserError
from detector.data.checks.boxes import MIN_BOXES
from detector.data.checks.findings import Findings
from detector.data.formats.folders import decode
from detector.data.formats.numbers import as_number, whole

MARGIN = 0.01  # how far a fraction may pass 0 or 1 by rounding
REFUTED = 0.25  # share of long rows that cannot begin with a box, from which all of them are polygons

Rows = Literal["auto", "box", "polygon"]


@dataclass(frozen=True, slots=True)
class Line:
    labels: Path
    number: int
    text: str

    @property
    def where(self) -> str:
        return f"{self.labels}: line {self.number}"


def has_labels(path: Path) -> bool:
    """Whether a file reads like labels: a text whose first line has a number and four coordinates."""
    if path.suffix.lower() != ".txt":
        return False
    first = next((text for _, text in numbered_lines(path)), "")
    return len(first.split()) >= 5 and all(as_number(word) is not None for word in first.split()[1:])


def numbered_lines(labels: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines that are not blank; none where there is no file."""
    try:
        text = decode(labels.read_bytes(), errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{labels}: cannot read the labels ({error.strerror})", "check the path") from None
    yield from ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def read_objects(
    lines: Sequence[Line], num_classes: int, num_keypoint_values: int, rows: Rows, findings: Findings
) -> dict[Path, list[tuple[Line, int, list[float]]]]:
    """Read the class and the box (x, y, w, h) in fractions of each line, by the file of labels.

    Args:
        lines: the lines of all files.
        num_classes: classes are 0..num_classes - 1.
        num_keypoint_values: how many values follow a box, where the data set declares that; else 0.
        rows: what a line of more than four coordinates is (see `YoloDataset`).
        findings: takes the lines that cannot be read.
    """
    parsed, malformed = [], []
    for line in lines:
        row = _parse_line(line.text, num_classes)
        wrong = row if isinstance(row, str) else _wrong_row(row[1], num_keypoint_values, rows)
        if wrong:
            malformed.append(f"{line.where}: {line.text.strip()[:60]!r} {wrong}")
        else:
            parsed.append((line, *row))
    findings.add("object_malformed", range(len(malformed)), malformed.__getitem__)
    long_rows = [values for _, _, values in parsed if len(values) > 4]
    if rows == "auto" and long_rows:
        lines = [line for line, _, values in parsed if len(values) > 4]
        kind = "row_polygon" if _are_polygons(long_rows) else "row_ambiguous"
        findings.add(kind, range(len(lines)), lambda i: f"{lines[i].where}: {_shown(lines[i])}")
        if kind == "row_ambiguous":
            parsed = [row for row in parsed if len(row[2]) == 4]
    _check_convention([(line, values) for line, _, values in parsed if len(values) == 4], findings)
    objects: dict[Path, list[tuple[Line, int, list[float]]]] = {}
    for line, label, values in parsed:
        box = _box_of_polygon(values) if len(values) > 4 and rows != "box" else _box_of_centre(values)
        objects.setdefault(line.labels, []).append((line, label, box))
    return objects


def _shown(line: Line) -> str:
    return repr(line.text.strip()[:60])


def _parse_line(line: str, num_classes: int) -> tuple[int, list[float]] | str:
    """The class and the numbers behind it, or what is wrong with the line."""
    category, *words = line.split()
    label = whole(category)
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if label is None or label < 0 or len(numbers) < 4 or not all(map(math.isfinite, numbers)):
        return "is not 'class cx cy w h'"
    if label >= num_classes:
        return f"has a class beyond the last one, {num_classes - 1}"
    return label, numbers


def _wrong_row(values: list[float], num_keypoint_values: int, rows: Rows) -> str:
    """What is wrong with the numbers of a line, else empty."""
    count = len(values)
    if rows == "box" and num_keypoint_values and count not in (4, 4 + num_keypoint_values):
        return f"has {count} values behind its class, and 'kpt_shape' means {4 + num_keypoint_values}"
    if rows != "box" and count % 2:
        return "is neither 'class cx cy w h' nor a polygon; rows=box reads its first four values alone"
    coordinates = values[:4] if rows == "box" else values
    if min(coordinates) < -MARGIN or max(coordinates) > 1 + MARGIN:
        return "is not in fractions of the image"
    return ""


def _are_polygons(rows: Sequence[list[float]]) -> bool:
    """Whether rows of more than four values, all alike, cannot be boxes with something behind them: keypoints, a score
    or a track's number."""
    if len({len(values) for values in rows}) > 1:
        return True
    refuted = [not _is_inside(_box_of_centre(values)) for values in rows]
    return sum(refuted) >= REFUTED * len(rows)


def _is_inside(box: list[float]) -> bool:
    """Whether a box (x, y, w, h) has an area and lies in the image, as far as rounding goes."""
    x, y, w, h = box
    return w > 0 and h > 0 and min(x, y) >= -MARGIN and max(x + w, y + h) <= 1 + MARGIN


def _check_convention(rows: Sequence[tuple[Line, list[float]]], findings: Findings) -> None:
    """Add boxes that fit their images as corners, or with the top left corner in place of the centre, and do not fit
    as YOLO means them."""
    outside = [line for line, values in rows if not _is_inside(_box_of_centre(values))]
    if len(rows) < MIN_BOXES or len(outside) <= len(rows) / 4:
        return
    others = {
        "x1 y1 x2 y2": all(x2 > x1 and y2 > y1 and max(x2, y2) <= 1 + MARGIN for _, (x1, y1, x2, y2) in rows),
        "x y w h with the top left corner": all(_is_inside(values) for _, values in rows),
    }
    fitting = [name for name, fits in others.items() if fits]
    if fitting:
        findings.add(
            "box_corners",
            range(len(outside)),
            lambda i: f"{outside[i].where}: {_shown(outside[i])} fits as {fitting[0]}",
        )


def _box_of_centre(values: Sequence[float]) -> list[float]:
    cx, cy, w, h = values[:4]
    return [cx - w / 2, cy - h / 2, w, h]


def _box_of_polygon(values: Sequence[float]) -> list[float]:
    xs, ys = values[::2], values[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
