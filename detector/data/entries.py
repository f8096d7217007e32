"""From a COCO dictionary to records, with the checks that every format expressed as such a dictionary shares."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.box_checks import as_number, check_boxes
from detector.data.dataset import Record
from detector.data.findings import Findings
from detector.data.folders import Folder
from detector.data.image_checks import check_images
from detector.data.images import MAX_PIXELS, Header
from detector.errors import UserError

MAX_ID = 2**53  # as far as every reader of JSON counts exactly
WHOLE = re.compile(r"\s*[-+]?[0-9]{1,20}(\.0*)?\s*")
KEYS = {  # that are used here, or that say nothing about objects
    "images": {"id", "file_name", "coco_url", "width", "height", "flickr_url", "license", "date_captured"},
    "annotations": {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore", "segmentation"}
    | {"where", "written"},
    "categories": {"id", "name", "supercategory"},
}

Entry = dict[str, Any]
Describe = Callable[[int], str]


def parse_coco(
    dictionary: Entry,
    source: Path,
    folder: Folder,
    classes: Sequence[str] | None,
    findings: Findings,
    *,
    headers: dict[str, Header | str] | None = None,
    upright: bool = False,
) -> tuple[list[Record], tuple[str, ...], tuple[int, ...]]:
    """Check a COCO dictionary and turn it into records in its order, class names and category ids.

    Boxes go from (x, y, w, h) to xyxy, are clipped to their image and not rounded. Regions with `iscrowd` or `ignore`
    count neither as objects nor as background. An area is the annotation's, or its clipped box's where there is none.

    Args:
        dictionary: the content. An annotation's keys `where` and `written` say where it stands and what its box reads
            there, if that is not the dictionary's own file.
        source: the file that messages name.
        folder: the folder of the images.
        classes: the class names in label order; None takes the categories, sorted by id.
        findings: takes what is wrong or odd.
        headers: those of the images that are known already, by name.
        upright: annotations are made on images as their EXIF orientation shows them.

    Raises:
        UserError: the dictionary is malformed, or none of its images can be used.
    """
    entries, annotations, categories = (
        _section(dictionary, name, source) for name in ("images", "annotations", "categories")
    )
    _note_unused_keys({"images": entries, "annotations": annotations, "categories": categories}, source, findings)
    image_ids = _unique_ids(entries, "images", source)
    file_names = [_file_name(entry, index, folder, source) for index, entry in enumerate(entries)]
    sizes = [tuple(_side(entry.get(key)) for key in ("width", "height")) for entry in entries]
    images = check_images(file_names, sizes, folder, source, findings, headers=headers or {}, upright=upright)

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
    lost = valid & ~images.usable[owner]
    findings.add("annotation_lost", np.flatnonzero(lost), describe)
    valid &= ~lost
    labels, class_names, category_ids = _classes(categories, annotations, classes, source, findings, valid, describe)
    crowd, ignore, area = (
        _numbers(annotations, key, default, findings, valid, describe)
        for key, default in (("iscrowd", 0), ("ignore", 0), ("area", np.nan))
    )
    boxes = check_boxes(annotations, images.sizes[owner], findings, valid, describe)
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


def whole(value: Any) -> int | None:
    """The whole number that a JSON value means: 3, 3.0, "3" and "3.0" are 3. None for anything else."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_ID:
        return int(value)
    if isinstance(value, str) and WHOLE.fullmatch(value):
        return int(value.split(".")[0])
    return None


def _section(dictionary: Entry, name: str, source: Path) -> list[Entry]:
    entries = dictionary.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{source}: '{name}' is missing or no list of objects; give an instances file in COCO format")
    if not entries and name != "annotations":
        raise UserError(f"{source}: '{name}' is empty; give at least one")
    return entries


def _file_name(entry: Entry, index: int, folder: Folder, source: Path) -> str:
    """LVIS gives the address of an image in COCO: its last part, or the last two, are the file."""
    name = entry.get("file_name")
    if "file_name" not in entry and isinstance(entry.get("coco_url"), str):
        parts = entry["coco_url"].split("/")
        name = next((n for n in ("/".join(parts[-2:]), parts[-1]) if folder.find(n) is not None), parts[-1])
    if not isinstance(name, str) or not name.strip():
        what = f"is {name!r}" if "file_name" in entry else "is missing"
        raise UserError(f"{source}: images[{index}].file_name {what}; give the name of the image's file")
    return name


def _side(value: Any) -> int:
    """0 where there is no usable number."""
    side = whole(value)
    return side if side is not None and 0 < side <= MAX_PIXELS else 0


def _unique_ids(entries: list[Entry], section: str, source: Path) -> list[int]:
    """Whole numbers from 0 to MAX_ID, which is what the scorers can count."""
    ids: dict[int, None] = {}
    for index, entry in enumerate(entries):
        value = whole(entry.get("id"))
        if value is None:
            what = f"is {entry['id']!r}" if "id" in entry else "is missing"
            raise UserError(f"{source}: {section}[{index}].id {what}; give a whole number")
        if value in ids:
            raise UserError(f"{source}: id {value} occurs twice in '{section}'; give each entry its own")
        if not 0 <= value <= MAX_ID:
            what = "negative" if value < 0 else "too large"
            raise UserError(f"{source}: id {value} in '{section}' is {what}; number the entries from 1")
        ids[value] = None
    return list(ids)


def _positions(annotations: list[Entry], key: str, ids: list[int]) -> np.ndarray:
    """(N,) int64: where each annotation's `key` stands among `ids`; -1 where it does not."""
    position: dict[int | None, int] = {value: index for index, value in enumerate(ids)}
    return np.array([position.get(whole(annotation.get(key)), -1) for annotation in annotations], np.int64)


def _classes(
    categories: list[Entry],
    annotations: list[Entry],
    classes: Sequence[str] | None,
    source: Path,
    findings: Findings,
    valid: np.ndarray,
    describe: Describe,
) -> tuple[np.ndarray, tuple[str, ...], tuple[int, ...]]:
    """Labels of the annotations, class names, category ids. A class that the file lacks gets an id it does not use."""
    ids = _unique_ids(categories, "categories", source)
    used = _positions(annotations, "category_id", ids)
    names = []
    for index, category in enumerate(categories):
        name = category.get("name")
        if not isinstance(name, str | int) or isinstance(name, bool):
            what = f"is {name!r}" if "name" in category else "is missing"
            raise UserError(f"{source}: categories[{index}].name {what}; give a text")
        names.append(str(name))
    roots = _roots(categories, names, set(used.tolist()))
    findings.add("category_root", roots, lambda i: f"{source}: category {ids[i]}, '{names[i]}'")
    id_of: dict[str, int] = {}
    for index, name in enumerate(names):
        if index not in roots and id_of.setdefault(name, ids[index]) != ids[index]:
            raise UserError(f"{source}: two categories are named '{name}'; give each its own name")
    class_names = tuple(sorted(id_of, key=id_of.__getitem__) if classes is None else classes)
    _note_alike(class_names, source, findings)

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


def _roots(categories: list[Entry], names: list[str], used: set[int]) -> list[int]:
    """The categories without objects that are no classes: one called like another, or the supercategory of all the
    others (Roboflow writes the name of the project so)."""
    unused = [index for index in range(len(names)) if index not in used]

    def is_root(index: int) -> bool:
        others = [other for other in range(len(names)) if other != index]
        repeats = any(names[other] == names[index] and other not in roots for other in others)
        return repeats or bool(others) and all(categories[o].get("supercategory") == names[index] for o in others)

    roots: list[int] = []
    for index in unused:
        if is_root(index):
            roots.append(index)
    return roots


def _note_alike(class_names: Sequence[str], source: Path, findings: Findings) -> None:
    first: dict[str, str] = {}
    pairs = [
        f"{source}: '{first[key]}' and '{name}'"
        for name in class_names
        if first.setdefault(key := " ".join(name.split()).casefold(), name) != name
    ]
    findings.add("class_alike", range(len(pairs)), pairs.__getitem__)


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
    """(N,) float64: an optional number of every annotation."""
    values = [default if annotation.get(key) is None else annotation[key] for annotation in annotations]
    numbers = [as_number(value) for value in values]
    wrong = np.array([n is None or n < 0 or n > MAX_PIXELS for n in numbers], dtype=bool)  # NaN is unknown
    findings.add("number", np.flatnonzero(valid & wrong), lambda i: f"{describe(i)}: {key} is {values[i]!r}")
    valid &= ~wrong
    return np.array([default if bad else number for number, bad in zip(numbers, wrong, strict=True)], np.float64)


def _check_completeness(
    annotations: list[Entry],
    categories: list[Entry],
    source: Path,
    findings: Findings,
    valid: np.ndarray,
    describe: Describe,
) -> None:
    """What readers of COCO files trip over, and this one does not."""
    for key, kind in (("area", "area"), ("iscrowd", "crowd")):
        findings.add(kind, [i for i in np.flatnonzero(valid) if key not in annotations[i]], describe)
    taken: set[int | None] = {0, None}  # an id of 0 is no match to pycocotools
    odd = []
    for index, annotation in enumerate(annotations):
        number = whole(annotation.get("id"))
        if number in taken:
            odd.append(index)
        else:
            taken.add(number)
    findings.add("annotation_id", odd, describe)
    ids = sorted(whole(category["id"]) for category in categories)
    if ids != list(range(1, len(ids) + 1)):
        shown = [*map(str, ids[:3]), *(["..."] if len(ids) > 3 else [])]
        findings.add("category_ids", [0], lambda _: f"{source}: {', '.join(shown)}")
