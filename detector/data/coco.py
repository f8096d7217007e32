"""COCO instance annotations, and the checks that every format expressed as a COCO dictionary shares."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detector.data.dataset import DetectionDataset, Record
from detector.errors import UserError
from detector.registry import DATASETS

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ParsedAnnotations:
    """Records in the file's order, their classes with the file's category ids, and how many boxes were left out."""

    records: list[Record]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    num_skipped: int


@DATASETS.register("coco")
class CocoDataset(DetectionDataset):
    """A COCO instances file and its images.

    classes: the class names in label order; None takes the file's categories, sorted by id. images: the folder that
    `file_name` is relative to. keep_empty: keep images without annotations. invalid: what to do with a box that is not
    finite or has no area inside its image; "skip" leaves it out and counts it in `num_skipped`.
    Raises UserError for a missing or malformed file and for a missing image.
    """

    def __init__(
        self,
        classes: Sequence[str] | None = None,
        *,
        images: Path,
        annotations: Path,
        keep_empty: bool = True,
        invalid: Literal["error", "skip"] = "error",
    ):
        parsed = parse_coco(_load_json(annotations), annotations, images, classes, invalid)
        records = [r for r in parsed.records if keep_empty or len(r.boxes)]
        super().__init__(records, parsed.class_names, parsed.category_ids)
        self.num_skipped = parsed.num_skipped


def parse_coco(
    dictionary: dict[str, Any],
    source: Path,
    images: Path,
    classes: Sequence[str] | None,
    invalid: Literal["error", "skip"],
) -> ParsedAnnotations:
    """Check a COCO dictionary and turn it into records; `source` is the file that errors name.

    Boxes go from (x, y, w, h) to xyxy, are clipped to their image and not rounded. iscrowd marks crowds; the area is
    the annotation's, or its clipped box's where there is none.
    """
    image_entries, annotations, categories = (
        _section(dictionary, name, source) for name in ("images", "annotations", "categories")
    )
    image_ids = _unique_ids(image_entries, "images", source)
    file_names = _column(image_entries, "file_name", str, "images", source)
    paths = [images / name for name in file_names]
    sizes = np.array(
        [_column(image_entries, side, int, "images", source) for side in ("width", "height")], dtype=np.int64
    ).T
    _check_images(paths, sizes, source)

    owner = _positions(annotations, "image_id", image_ids, "images", source)
    labels, class_names, category_ids = _classes(categories, annotations, classes, source)
    crowd = _numbers(annotations, "iscrowd", 0, source).astype(bool)
    boxes = _clipped_boxes(annotations, sizes[owner], source)
    extent = boxes[:, 2:] - boxes[:, :2]
    area = _numbers(annotations, "area", np.nan, source).astype(np.float32)
    area = np.where(np.isfinite(area), area, extent.prod(axis=1))

    valid = (extent > 0).all(axis=1)  # false for NaN too
    num_skipped = int((~valid).sum())
    if num_skipped:
        first = int(np.argmin(valid))
        message = (
            f"{source}: annotation {annotations[first].get('id', first)} of image '{file_names[owner[first]]}': box "
            f"{annotations[first]['bbox']} (x, y, w, h) has no area inside the image"
        )
        if invalid == "error":
            raise UserError(f"{message}; correct it, or set invalid=skip ({num_skipped} such in all)")
        _log.warning("%s; skipped, %d such in all", message, num_skipped)

    order = np.flatnonzero(valid)
    order = order[np.argsort(owner[order], kind="stable")]
    ends = np.searchsorted(owner[order], np.arange(len(paths)), side="right")
    starts = np.concatenate(([0], ends))
    boxes, labels, crowd, area = boxes[order], labels[order], crowd[order], area[order]
    records = [
        Record(path, image_id, int(width), int(height), boxes[s:e], labels[s:e], crowd[s:e], area[s:e])
        for path, image_id, (width, height), s, e in zip(paths, image_ids, sizes, starts, ends, strict=False)
    ]
    return ParsedAnnotations(records, class_names, category_ids, num_skipped)


def _load_json(path: Path) -> dict[str, Any]:
    try:
        dictionary = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot read the annotations ({error.strerror}); check the path") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); correct or replace the file") from None
    if not isinstance(dictionary, dict):
        raise UserError(f"{path}: a COCO file is one JSON object, this is a {type(dictionary).__name__}")
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
            raise UserError(f"{source}: {section}[{index}].{key} {found}; it must be of type {kind.__name__}")
    return column


def _unique_ids(entries: list[dict[str, Any]], section: str, source: Path) -> list[int]:
    ids = _column(entries, "id", int, section, source)
    seen: set[int] = set()
    for value in ids:
        if value in seen:
            raise UserError(f"{source}: id {value} occurs twice in '{section}'; give each entry its own")
        seen.add(value)
    return ids


def _positions(annotations: list[dict[str, Any]], key: str, ids: list[int], section: str, source: Path) -> np.ndarray:
    """(N,) int64: where each annotation's `key` stands among `ids`."""
    position = {value: index for index, value in enumerate(ids)}
    try:
        return np.array([position[v] for v in _column(annotations, key, int, "annotations", source)], dtype=np.int64)
    except KeyError as error:
        first = next(a for a in annotations if a[key] == error.args[0])
        raise UserError(
            f"{source}: annotation {first.get('id')} has {key} {error.args[0]}, which '{section}' does not list; add it"
        ) from None


def _check_images(paths: list[Path], sizes: np.ndarray, source: Path) -> None:
    for path, (width, height) in zip(paths, sizes, strict=True):
        if width <= 0 or height <= 0:
            raise UserError(f"{source}: image '{path.name}' has size {width}x{height}; write its width and height")
        if not path.is_file():
            raise UserError(f"{path}: no such image, yet {source} lists it; check the images folder")


def _classes(
    categories: list[dict[str, Any]], annotations: list[dict[str, Any]], classes: Sequence[str] | None, source: Path
) -> tuple[np.ndarray, tuple[str, ...], tuple[int, ...]]:
    """Labels of the annotations, class names, category ids. A class that the file lacks gets an id it does not use."""
    ids = _unique_ids(categories, "categories", source)
    names = _column(categories, "name", str, "categories", source)
    id_of = dict(zip(names, ids, strict=True))
    if len(id_of) < len(ids):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{source}: two categories are named '{twice}'; give each its own name")
    class_names = tuple(sorted(id_of, key=id_of.__getitem__) if classes is None else classes)

    label_of = {name: label for label, name in enumerate(class_names)}
    used = _positions(annotations, "category_id", ids, "categories", source)
    for index in np.unique(used):
        if names[index] not in label_of:
            raise UserError(
                f"{source}: category '{names[index]}' is in use but not among the classes {', '.join(class_names)}; "
                "annotate both splits with the same classes"
            )
    labels = np.array([label_of.get(name, -1) for name in names], dtype=np.int64)[used]

    next_id = max(ids) + 1
    missing = [name for name in class_names if name not in id_of]
    id_of |= {name: next_id + offset for offset, name in enumerate(missing)}
    return labels, class_names, tuple(id_of[name] for name in class_names)


def _numbers(annotations: list[dict[str, Any]], key: str, default: float, source: Path) -> np.ndarray:
    """(N,) float64: an optional number of every annotation."""
    values = [annotation.get(key, default) for annotation in annotations]
    for annotation, value in zip(annotations, values, strict=True):
        if not isinstance(value, int | float):
            raise UserError(f"{source}: annotation {annotation.get('id')}: {key} is {value!r}; it must be a number")
    return np.array(values, dtype=np.float64)


def _clipped_boxes(annotations: list[dict[str, Any]], sizes: np.ndarray, source: Path) -> np.ndarray:
    """(N, 4) float32 xyxy inside images of `sizes` (N, 2) (width, height); NaN in every box that is not finite."""
    rows = _column(annotations, "bbox", list, "annotations", source)
    for annotation, row in zip(annotations, rows, strict=True):
        if len(row) != 4 or not all(isinstance(value, int | float) for value in row):
            raise UserError(f"{source}: annotation {annotation.get('id')}: bbox {row} is not four numbers (x, y, w, h)")
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 4)
    boxes[~np.isfinite(boxes).all(axis=1)] = np.nan
    boxes[:, 2:] += boxes[:, :2]
    return np.clip(boxes, 0, np.tile(sizes, 2)).astype(np.float32)
