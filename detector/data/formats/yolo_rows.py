"""The lines of YOLO labels: `class cx cy w h`, a polygon, or a box that keypoints or a score follow."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detector.core.errors import UserError
from detector.data.checks.boxes import MIN_BOXES
from detector.data.checks.findings import Findings
from detector.data.formats.folders import decode
from detector.data.formats.numbers import as_integer, as_number

MARGIN = 0.01  # a fraction may be below 0 or above 1 by this much because of rounding
REFUTED = 0.25  # from this fraction of long lines that cannot begin with a box, all long lines are polygons

Rows = Literal["auto", "box", "polygon"]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a label file.

    Attributes:
        labels: the label file.
        number: the number of the line, from 1.
        text: the text of the line.
    """

    labels: Path
    number: int
    text: str

    @property
    def location(self) -> str:
        """The file and the line, for messages."""
        return f"{self.labels}: line {self.number}"


def has_labels(path: Path) -> bool:
    """Return whether a file looks like labels: a .txt file whose first line has a class and four coordinates."""
    if path.suffix.lower() != ".txt":
        return False
    first = next((text for _, text in numbered_lines(path)), "")
    return len(first.split()) >= 5 and all(as_number(word) is not None for word in first.split()[1:])


def numbered_lines(labels: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers. A missing file has no lines. Raises UserError."""
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
    """Read the class and the box of each line.

    Args:
        lines: the lines of all files.
        num_classes: the number of classes. Classes are 0..num_classes - 1.
        num_keypoint_values: the declared number of values after a box, otherwise 0.
        rows: the meaning of lines with more than four coordinates (see `YoloDataset`).
        findings: receives the lines that cannot be read.

    Returns:
        For each label file: the lines, their classes and their boxes (x, y, w, h) in fractions of the image.
    """
    parsed, malformed = [], []
    for line in lines:
        row = _parse_line(line.text, num_classes)
        problem = row if isinstance(row, str) else _row_problem(row[1], num_keypoint_values, rows)
        if problem:
            malformed.append(f"{line.location}: {_shown(line)} {problem}")
        else:
            parsed.append((line, *row))
    findings.add("object_malformed", range(len(malformed)), malformed.__getitem__)
    long_rows = [values for _, _, values in parsed if len(values) > 4]
    if rows == "auto" and long_rows:
        lines = [line for line, _, values in parsed if len(values) > 4]
        kind = "row_polygon" if _are_polygons(long_rows) else "row_ambiguous"
        findings.add(kind, range(len(lines)), lambda i: f"{lines[i].location}: {_shown(lines[i])}")
        if kind == "row_ambiguous":
            parsed = [row for row in parsed if len(row[2]) == 4]
    _check_convention([(line, values) for line, _, values in parsed if len(values) == 4], findings)
    objects: dict[Path, list[tuple[Line, int, list[float]]]] = {}
    for line, label, values in parsed:
        box = _box_of_polygon(values) if len(values) > 4 and rows != "box" else _box_of_center(values)
        objects.setdefault(line.labels, []).append((line, label, box))
    return objects


def _shown(line: Line) -> str:
    return repr(line.text.strip()[:60])


def _parse_line(line: str, num_classes: int) -> tuple[int, list[float]] | str:
    """Return the class and the numbers that follow, or the problem of the line."""
    category, *words = line.split()
    label = as_integer(category)
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if label is None or label < 0 or len(numbers) < 4 or not all(map(math.isfinite, numbers)):
        return "is not 'class cx cy w h'"
    if label >= num_classes:
        return f"has class {label}; the last class is {num_classes - 1}"
    return label, numbers


def _row_problem(values: list[float], num_keypoint_values: int, rows: Rows) -> str:
    """Return the problem of the numbers of a line, or an empty text."""
    count = len(values)
    if rows == "box" and num_keypoint_values and count not in (4, 4 + num_keypoint_values):
        return f"has {count} values after the class, but kpt_shape declares {4 + num_keypoint_values}"
    if rows != "box" and count % 2:
        return "is neither 'class cx cy w h' nor a polygon (rows=box reads only the first four values)"
    coordinates = values[:4] if rows == "box" else values
    if min(coordinates) < -MARGIN or max(coordinates) > 1 + MARGIN:
        return "is not in fractions of the image"
    return ""


def _are_polygons(rows: Sequence[list[float]]) -> bool:
    """Return whether lines with more than four values are polygons, not boxes with keypoints, a score or a track id."""
    if len({len(values) for values in rows}) > 1:
        return True
    refuted = [not _is_inside(_box_of_center(values)) for values in rows]
    return sum(refuted) >= REFUTED * len(rows)


def _is_inside(box: list[float]) -> bool:
    """Return whether a box (x, y, w, h) has an area and is inside the image, except for rounding."""
    x, y, w, h = box
    return w > 0 and h > 0 and min(x, y) >= -MARGIN and max(x + w, y + h) <= 1 + MARGIN


def _check_convention(rows: Sequence[tuple[Line, list[float]]], findings: Findings) -> None:
    """Report boxes that fit their images only as corners, or only with the top left corner instead of the center."""
    outside = [line for line, values in rows if not _is_inside(_box_of_center(values))]
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
            lambda i: f"{outside[i].location}: {_shown(outside[i])} fits its image only as {fitting[0]}",
        )


def _box_of_center(values: Sequence[float]) -> list[float]:
    cx, cy, w, h = values[:4]
    return [cx - w / 2, cy - h / 2, w, h]


def _box_of_polygon(values: Sequence[float]) -> list[float]:
    xs, ys = values[::2], values[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
