"""COCO instance annotations, and the checks that every format expressed as a COCO dictionary shares."""

import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detector.data.dataset import DetectionDataset, Record
from detector.data.findings import Findings
from detector.data.images import MAX_PIXELS
from detector.errors import UserError
from detector.registry import DATASETS

MAX_ID = 2**53  # as far as every reader of JSON counts exactly
MAX_OVERHANG = 1.0  # pixels that a box may reach over its image's edge before that is worth a word
MIN_CORNERS = 5  # boxes that must agree before they are taken for corners


@DATASETS.register("coco")
class CocoDataset(DetectionDataset):
    """A COCO instances file and its images.

    classes: the class names in label order; None takes the file's categories, sorted by id. images: the folder that
    `file_name` is relative to. What is wrong with single entries goes to `findings`.
    Raises UserError for a missing or malformed file, and where no image is there.
    """

    def __init__(
        self,
        classes: Sequence[str] | None = None,
        findings: Findings | None = None,
        *,
        images: Path,
        annotations: Path,
    ):
        super().__init__(*parse_coco(read_json(annotations), annotations, images, classes, findings or Findings()))


def parse_coco(
    dictionary: dict[str, Any], source: Path, images: Path, classes: Sequence[str] | None, findings: Findings
) -> tuple[list[Record], tuple[str, ...], tuple[int, ...]]:
    """Check a COCO dictionary and turn it into records in its order, class names and category ids; `source` is the file
    that messages name.

    An annotation's keys `where` and `written` say where it stands and what its box reads there, if that is not the
    dictionary's own file.
    Boxes go from (x, y, w, h) to xyxy, are clipped to their image and not rounded. iscrowd marks crowds; the area is
    the annotation's, or its clipped box's where there is none.
    """
    image_entries, annotations, categories = (
        _section(dictionary, name, source) for name in ("images", "annotations", "categories")
    )
    image_ids = _unique_ids(image_entries, "images", source)
    file_names = _column(image_entries, "file_name", str, "images", source)
    sizes = [_column(image_entries, side, int, "images", source) for side in ("width", "height")]
    usable = _usable_images(file_names, list(zip(*sizes, strict=True)), images, source, findings)
    sizes = np.where(usable[:, None], np.array(sizes, dtype=object).T, 0).astype(np.int64)

    def describe(index: int) -> str:
        entry = annotations[index]
        if "where" in entry:
            return entry["where"]
        image = f" of image '{file_names[owner[index]]}'" if owner[index] >= 0 else ""
        return f"{source}: annotation {entry.get('id', index)}{image}"

    owner = _positions(annotations, "image_id", image_ids)
    findings.add(
        "annotation_orphan",
        np.flatnonzero(owner < 0),
        lambda i: f"{describe(i)} has image_id {annotations[i].get('image_id')!r}, which 'images' does not list",
    )
    valid = owner >= 0
    lost = valid & ~usable[owner]
    findings.add("annotation_lost", np.flatnonzero(lost), describe)
    valid &= ~lost
    labels, class_names, category_ids = _classes(categories, annotations, classes, source, findings, valid, describe)
    crowd, area = (
        _numbers(annotations, key, default, findings, valid, describe)
        for key, default in (("iscrowd", 0), ("area", np.nan))
    )
    boxes = _clipped_boxes(annotations, sizes[owner], findings, valid, describe)
    _check_completeness(annotations, categories, source, findings, valid, describe)
    area = np.where(np.isfinite(area), area, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)).astype(np.float32)

    order = np.flatnonzero(valid)
    order = order[np.argsort(owner[order], kind="stable")]
    ends = np.searchsorted(owner[order], np.arange(len(file_names)), side="right")
    starts = np.concatenate(([0], ends))
    boxes, labels, crowd, area = boxes[order], labels[order], crowd[order] > 0, area[order]
    records = [
        Record(images / name, image_id, int(width), int(height), boxes[s:e], labels[s:e], crowd[s:e], area[s:e])
        for name, image_id, (width, height), s, e, kept in zip(
            file_names, image_ids, sizes, starts, ends, usable, strict=False
        )
        if kept
    ]
    return records, class_names, category_ids


def read_json(path: Path) -> dict[str, Any]:
    try:
        dictionary = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot read the annotations ({error.strerror}); check the path") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise UserError(f"{path}: not valid JSON ({reason}); correct or replace the file") from None
    if not isinstance(dictionary, dict):
        kind = type(dictionary).__name__
        raise UserError(f"{path}: holds a {kind}, not one JSON object; give an instances file in COCO format")
    return dictionary


def _section(dictionary: dict[str, Any], name: str, source: Path) -> list[dict[str, Any]]:
    entries = dictionary.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{source}: '{name}' is missing or no list of objects; give an instances file in COCO format")
    if not entries and name != "annotations":
        raise UserError(f"{source}: '{name}' is empty; give at least one")
    return entries


def _column(entries: list[dict[str, Any]], key: str, kind: type, section: str, source: Path) -> list[Any]:
    """One key of every entry, checked to be there and of its type."""
    column = [entry.get(key) for entry in entries]
    for index, value in enumerate(column):
        if type(value) is not kind:
            found = f"is {value!r}" if key in entries[index] else "is missing"
            what = {int: "a whole number", str: "a text"}[kind]
            raise UserError(f"{source}: {section}[{index}].{key} {found}; give {what}")
    return column


def _unique_ids(entries: list[dict[str, Any]], section: str, source: Path) -> list[int]:
    ids = _column(entries, "id", int, section, source)
    seen: set[int] = set()
    for value in ids:
        if value in seen:
            raise UserError(f"{source}: id {value} occurs twice in '{section}'; give each entry its own")
        if abs(value) > MAX_ID:
            raise UserError(f"{source}: id {value} in '{section}' is too large; number the entries from 1")
        seen.add(value)
    return ids


def _positions(annotations: list[dict[str, Any]], key: str, ids: list[int]) -> np.ndarray:
    """(N,) int64: where each annotation's `key` stands among `ids`; -1 where it does not."""
    position = {value: index for index, value in enumerate(ids)}
    values = (annotation.get(key) for annotation in annotations)
    return np.array([position.get(v, -1) if type(v) is int else -1 for v in values], np.int64)


def _usable_images(
    names: list[str], sizes: list[tuple[int, int]], folder: Path, source: Path, findings: Findings
) -> np.ndarray:
    """(N,) bool: images with a size, which are there, inside `folder`, and listed for the first time."""
    places = _places(names, folder)
    if set(places) == {"missing"}:
        raise UserError(f"{folder / names[0]}: no such image, yet {source} lists it; check the images folder")
    first: dict[str, int] = {}
    problems = {
        "image_size": (
            [i for i, (w, h) in enumerate(sizes) if w <= 0 or h <= 0 or w * h > MAX_PIXELS],
            lambda i: f"{source}: image '{names[i]}' has size {sizes[i][0]}x{sizes[i][1]}",
        ),
        "image_outside": (
            [i for i, place in enumerate(places) if place == "outside"],
            lambda i: f"{source}: image '{names[i]}' leads outside the images folder {folder}",
        ),
        "image_missing": (
            [i for i, place in enumerate(places) if place == "missing"],
            lambda i: f"{folder / names[i]}: no such image, yet {source} lists it",
        ),
        "image_twice": (
            [i for i, name in enumerate(names) if first.setdefault(name, i) != i],
            lambda i: f"{source}: image '{names[i]}' is listed twice",
        ),
    }
    usable = np.ones(len(names), dtype=bool)
    for kind, (which, describe) in problems.items():
        findings.add(kind, [i for i in which if usable[i]], describe)
        usable[which] = False
    return usable


def _places(names: list[str], folder: Path) -> list[Literal["inside", "outside", "missing"]]:
    """Where each file is: inside the folder, outside it (by its path or by a link), or nowhere. One look at a folder's
    list is much faster than one at each of its files."""
    root = os.path.realpath(folder)

    def is_below(path: str) -> bool:
        real = os.path.realpath(path)
        return real == root or real.startswith(root.rstrip(os.sep) + os.sep)

    @cache
    def files(parent: str) -> dict[str, str] | None:
        """The folder's files, and whether they are links; None for a folder that is not below the root."""
        try:
            if not is_below(parent):
                return None
            with os.scandir(parent) as entries:
                return {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
        except (OSError, ValueError):  # the latter: a name with a null byte
            return {}

    def place(name: str) -> Literal["inside", "outside", "missing"]:
        parent, base = os.path.split(os.path.join(root, name))
        listed = files(parent)
        if listed is None:
            return "outside"
        if base not in listed:
            return "missing"
        return "outside" if listed[base] and not is_below(os.path.join(parent, base)) else "inside"

    return list(map(place, names))


def _classes(
    categories: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    classes: Sequence[str] | None,
    source: Path,
    findings: Findings,
    valid: np.ndarray,
    describe: Callable[[int], str],
) -> tuple[np.ndarray, tuple[str, ...], tuple[int, ...]]:
    """Labels of the annotations, class names, category ids. A class that the file lacks gets an id it does not use."""
    ids = _unique_ids(categories, "categories", source)
    names = _column(categories, "name", str, "categories", source)
    id_of = dict(zip(names, ids, strict=True))
    if len(id_of) < len(ids):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{source}: two categories are named '{twice}'; give each its own name")
    class_names = tuple(sorted(id_of, key=id_of.__getitem__) if classes is None else classes)

    used = _positions(annotations, "category_id", ids)
    findings.add(
        "category_unknown",
        np.flatnonzero(valid & (used < 0)),
        lambda i: (
            f"{describe(i)} has category_id {annotations[i].get('category_id')!r}, which 'categories' does not list"
        ),
    )
    valid &= used >= 0
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of.get(name, -1) for name in names], dtype=np.int64)[used]
    findings.add(
        "class_unknown",
        np.flatnonzero(valid & (labels < 0)),
        lambda i: (
            f"{describe(i)}: category '{names[used[i]]}' is in use but not among the classes " + ", ".join(class_names)
        ),
    )
    valid &= labels >= 0

    next_id = max(ids) + 1
    missing = [name for name in class_names if name not in id_of]
    id_of |= {name: next_id + offset for offset, name in enumerate(missing)}
    return labels, class_names, tuple(id_of[name] for name in class_names)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53)


def _numbers(
    annotations: list[dict[str, Any]],
    key: str,
    default: float,
    findings: Findings,
    valid: np.ndarray,
    describe: Callable[[int], str],
) -> np.ndarray:
    """(N,) float64: an optional number of every annotation."""
    values = [default if annotation.get(key) is None else annotation[key] for annotation in annotations]
    wrong = np.array([not _is_number(v) or v < 0 or v > MAX_PIXELS for v in values], dtype=bool)  # NaN is unknown
    findings.add("number", np.flatnonzero(valid & wrong), lambda i: f"{describe(i)}: {key} is {values[i]!r}")
    valid &= ~wrong
    return np.array([default if bad else value for value, bad in zip(values, wrong, strict=True)], dtype=np.float64)


def _clipped_boxes(
    annotations: list[dict[str, Any]],
    sizes: np.ndarray,
    findings: Findings,
    valid: np.ndarray,
    describe: Callable[[int], str],
) -> np.ndarray:
    """(N, 4) float32 xyxy inside images of `sizes` (N, 2) (width, height)."""
    rows = [annotation.get("bbox") for annotation in annotations]
    four = [isinstance(row, list) and len(row) == 4 and all(map(_is_number, row)) for row in rows]
    boxes = np.array([row if good else [np.nan] * 4 for row, good in zip(rows, four, strict=True)], dtype=np.float64)
    x, y, width, height = boxes.reshape(-1, 4).T
    image_width, image_height = sizes.T
    with np.errstate(over="ignore", invalid="ignore"):
        boxes = np.stack((x, y, x + width, y + height), axis=1)
    clipped = np.clip(boxes, 0, np.tile(sizes, 2)).astype(np.float32)
    empty = ~((width > 0) & (height > 0))

    def box(i: int) -> str:
        return f"{describe(i)}: {annotations[i].get('written') or f'box {rows[i]} (x, y, w, h)'}"

    problems = {
        "box_malformed": (~np.isfinite(boxes).all(axis=1), "is not four finite numbers"),
        "box_empty": (empty, "has no area"),
        "box_outside": (~(clipped[:, 2:] > clipped[:, :2]).all(axis=1), "has no area inside the image"),
    }
    for kind, (wrong, what) in problems.items():
        findings.add(kind, np.flatnonzero(valid & wrong), lambda i, what=what: f"{box(i)} {what}")
        valid &= ~wrong
    overhang = np.abs(boxes - clipped).max(axis=1, initial=0) > MAX_OVERHANG
    as_corners = (width > x) & (height > y) & (width <= image_width + 1) & (height <= image_height + 1)
    if valid.sum() >= MIN_CORNERS and as_corners[valid].all() and overhang[valid].mean() > 0.25:
        findings.add(
            "box_corners",
            np.flatnonzero(valid & overhang),
            lambda i: f"{box(i)} fits its image as (x1, y1, x2, y2) alone, and so do all the others",
        )
    findings.add(
        "box_clipped",
        np.flatnonzero(valid & overhang),
        lambda i: f"{box(i)} in {image_width[i]}x{image_height[i]} pixels",
    )
    return clipped


def _check_completeness(
    annotations: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    source: Path,
    findings: Findings,
    valid: np.ndarray,
    describe: Callable[[int], str],
) -> None:
    """What readers of COCO files trip over, and this one does not."""
    for key, kind in (("area", "area"), ("iscrowd", "crowd")):
        findings.add(kind, [i for i in np.flatnonzero(valid) if key not in annotations[i]], describe)
    taken: set[int] = {0}  # an id of 0 is no match to pycocotools
    odd = []
    for index, annotation in enumerate(annotations):
        number = annotation.get("id")
        if not isinstance(number, int) or number in taken:
            odd.append(index)
        else:
            taken.add(number)
    findings.add("annotation_id", odd, describe)
    ids = sorted(category["id"] for category in categories)
    if ids != list(range(1, len(ids) + 1)):
        shown = [*map(str, ids[:3]), *(["..."] if len(ids) > 3 else [])]
        findings.add("category_ids", [0], lambda _: f"{source}: {', '.join(shown)}")
