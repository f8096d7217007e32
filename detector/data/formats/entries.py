"""The conversion of a COCO dictionary to records, with the checks that all formats share.

The readers of the other formats first convert their files to a COCO dictionary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detector.core.errors import UserError
from detector.data.checks.boxes import check_boxes
from detector.data.checks.findings import Findings
from detector.data.checks.images import check_images
from detector.data.dataset import Record
from detector.data.formats.categories import Describe, Entry, classes_of, positions, unique_ids
from detector.data.formats.folders import Folder
from detector.data.formats.numbers import as_integer, as_number
from detector.data.images import MAX_PIXELS, Header

KEYS = {  # the known keys: this file reads them, or they do not concern objects
    "images": {"id", "file_name", "coco_url", "width", "height", "flickr_url", "license", "date_captured"}
    | {"neg_category_ids", "not_exhaustive_category_ids"},  # LVIS
    "annotations": {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore", "segmentation"},
    "categories": {"id", "name", "supercategory"},
}


def parse_coco(
    dictionary: Entry,
    source: Path,
    folder: Folder,
    classes: Sequence[str] | None,
    findings: Findings,
    *,
    locations: Sequence[tuple[str, str]] | None = None,
    headers: dict[str, Header | str] | None = None,
    upright: bool = False,
) -> tuple[list[Record], tuple[str, ...], tuple[int, ...]]:
    """Check a COCO dictionary and convert it to records.

    Boxes are converted from (x, y, w, h) to xyxy and clipped to their image, without rounding. Regions with `iscrowd`
    or `ignore` count neither as objects nor as background. An annotation without area has the area of its clipped box.

    Args:
        dictionary: the content of the annotation file.
        source: the annotation file, for messages.
        folder: the folder of the images.
        classes: the class names in label order. None takes the categories, sorted by id.
        findings: receives the problems of images and annotations.
        locations: the location of each annotation and its box as the file has it, for other formats than COCO.
        headers: the headers of images that have been read already, by name.
        upright: whether the annotations refer to the images as their EXIF orientation shows them.

    Returns:
        The records in the order of `images`, the class names, and the category ids of the classes.

    Raises:
        UserError: the dictionary is malformed, or no image can be used.
    """
    entries, annotations, categories = (
        _section(dictionary, name, source) for name in ("images", "annotations", "categories")
    )
    _note_unused_keys({"images": entries, "annotations": annotations, "categories": categories}, source, findings)
    image_ids = unique_ids(entries, "images", source)
    partly = [i for i, entry in enumerate(entries) if entry.get("not_exhaustive_category_ids")]
    findings.add("image_partly", partly, lambda i: f"{source}: image {image_ids[i]}")
    file_names = [_file_name(entry, index, folder, source) for index, entry in enumerate(entries)]
    sizes = [(_side(entry.get("width")), _side(entry.get("height"))) for entry in entries]
    images = check_images(file_names, sizes, folder, source, findings, headers=headers or {}, upright=upright)

    def describe(index: int) -> str:
        if locations is not None:
            return locations[index][0]
        entry = annotations[index]
        image = f" of image '{file_names[owner[index]]}'" if owner[index] >= 0 else ""
        return f"{source}: annotation {entry.get('id', index)}{image}"

    owner = positions(annotations, "image_id", image_ids)
    findings.add(
        "annotation_orphan",
        np.flatnonzero(owner < 0),
        lambda i: f"{describe(i)} has image_id {annotations[i].get('image_id')!r}, which 'images' does not list",
    )
    valid = owner >= 0
    lost = valid & ~images.usable[owner]
    findings.add("annotation_lost", np.flatnonzero(lost), describe)
    valid &= ~lost
    labels, class_names, category_ids = classes_of(categories, annotations, classes, source, findings, valid, describe)
    crowd, ignore, area = (
        _numbers(annotations, key, default, findings, valid, describe)
        for key, default in (("iscrowd", 0), ("ignore", 0), ("area", np.nan))
    )
    boxes = check_boxes(annotations, images.sizes[owner], findings, valid, describe, locations)
    _check_completeness(annotations, categories, source, findings, valid, describe)
    area = np.where(np.isfinite(area), area, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)).astype(np.float32)
    crowd = (crowd > 0) | (ignore > 0)

    order = np.flatnonzero(valid)
    order = order[np.argsort(owner[order], kind="stable")]
    ends = np.searchsorted(owner[order], np.arange(len(file_names)), side="right")
    starts = np.concatenate(([0], ends))
    boxes, labels, crowd, area = boxes[order], labels[order], crowd[order], area[order]
    records = []
    for i, (name, image_id, (width, height)) in enumerate(zip(images.names, image_ids, images.sizes, strict=True)):
        if images.usable[i]:
            rows = slice(starts[i], ends[i])
            annotated = boxes[rows], labels[rows], crowd[rows], area[rows]
            flags = upright, bool(images.is_deep[i])
            records.append(Record(folder.path(name), image_id, int(width), int(height), *annotated, *flags))
    return records, class_names, category_ids


def _section(dictionary: Entry, name: str, source: Path) -> list[Entry]:
    entries = dictionary.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(
            f"{source}: '{name}' is missing or is not a list of objects", "give an instances file in COCO format"
        )
    if not entries and name != "annotations":
        raise UserError(f"{source}: '{name}' is empty", "give at least one entry")
    return entries


def _file_name(entry: Entry, index: int, folder: Folder, source: Path) -> str:
    """Return the file name of an image entry.

    LVIS gives the URL of the image in COCO. The file is the last part, or the last two parts, of the URL.
    """
    name = entry.get("file_name")
    if "file_name" not in entry and isinstance(entry.get("coco_url"), str):
        parts = entry["coco_url"].split("/")
        name = next((n for n in ("/".join(parts[-2:]), parts[-1]) if folder.find(n) is not None), parts[-1])
    if not isinstance(name, str) or not name.strip():
        problem = f"is {name!r}" if "file_name" in entry else "is missing"
        raise UserError(f"{source}: images[{index}].file_name {problem}", "give the name of the image file")
    return name


def _side(value: Any) -> int:
    """Return the side in pixels, or 0 where the value is not a usable number."""
    side = as_integer(value)
    return side if side is not None and 0 < side <= MAX_PIXELS else 0


def _note_unused_keys(sections: dict[str, list[Entry]], source: Path, findings: Findings) -> None:
    unknown = [
        f"{section}.{key}"
        for section, entries in sections.items()
        for key in sorted({key for entry in entries for key in entry} - KEYS[section])
    ]
    findings.add("key_unknown", range(len(unknown)), lambda i: f"{source}: {unknown[i]}")


def _numbers(
    annotations: list[Entry], key: str, default: float, findings: Findings, valid: np.ndarray, describe: Describe
) -> np.ndarray:
    """Return an optional number of each annotation, (N,) float64."""
    values = [default if annotation.get(key) is None else annotation[key] for annotation in annotations]
    numbers = [as_number(value) for value in values]
    is_wrong = np.array(
        [n is None or n < 0 or n > MAX_PIXELS for n in numbers], dtype=bool
    )  # NaN means an unknown number
    findings.add("number", np.flatnonzero(valid & is_wrong), lambda i: f"{describe(i)}: {key} is {values[i]!r}")
    valid &= ~is_wrong
    return np.array([default if bad else number for number, bad in zip(numbers, is_wrong, strict=True)], np.float64)


def _check_completeness(
    annotations: list[Entry],
    categories: list[Entry],
    source: Path,
    findings: Findings,
    valid: np.ndarray,
    describe: Describe,
) -> None:
    """Report missing keys and odd ids, which this reader accepts and other readers of COCO files do not."""
    for key, kind in (("area", "area"), ("iscrowd", "crowd")):
        findings.add(kind, [i for i in np.flatnonzero(valid) if key not in annotations[i]], describe)
    seen: set[int | None] = {0, None}  # pycocotools treats a match with the id 0 as no match
    odd = []
    for index, annotation in enumerate(annotations):
        number = as_integer(annotation.get("id"))
        if number in seen:
            odd.append(index)
        else:
            seen.add(number)
    findings.add("annotation_id", odd, describe)
    ids = sorted(as_integer(category["id"]) or 0 for category in categories)
    if ids != list(range(1, len(ids) + 1)):
        shown = [*map(str, ids[:3]), *(["..."] if len(ids) > 3 else [])]
        findings.add("category_ids", [0], lambda _: f"{source}: the ids {', '.join(shown)}")
