"""YOLO labels: a text file for each image, a line `class cx cy w h` for each box, in fractions of the image."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from detector.data.coco import parse_coco
from detector.data.dataset import DetectionDataset
from detector.data.findings import Findings
from detector.data.images import SUFFIXES, find_images, read_header
from detector.errors import UserError
from detector.registry import DATASETS
from detector.strict_yaml import read_yaml

MARGIN = 0.01  # how far a fraction may pass 0 or 1 by rounding


@DATASETS.register("yolo")
class YoloDataset(DetectionDataset):
    """A YOLO data set.

    annotations: its data.yaml, whose `split` entry gives the images (a folder, a list of paths in a text file, or
    several of these, below the file's `path`, or else below the file's own folder) and whose `names` gives the class
    names; an image's labels are at its own path with the last `images` folder replaced by `labels`, and .txt for its
    suffix. Or the folder of the label files, with `images` the folder of the images and the class names, one a line,
    in `classes.txt` beside the labels. An image without a label file, or with an empty one, has no objects. A line of
    more than four coordinates is a polygon and becomes its box.
    classes: the class names in label order; None takes those listed. Image ids count from 1 in the order of the images,
    category ids from 1 in the file's. Sizes are those of the images as a person sees them (EXIF), as labels are made.
    What is wrong with single images or lines goes to `findings`.
    Raises UserError for a missing or malformed file or folder, and where no image can be read.
    """

    def __init__(
        self,
        classes: Sequence[str] | None = None,
        findings: Findings | None = None,
        *,
        annotations: Path,
        images: Path | None = None,
        split: Literal["train", "val", "test"] | None = None,
    ):
        findings = findings or Findings()
        if annotations.is_dir():
            names, pairs = _folder(annotations, images)
        elif split is None:
            raise UserError(f"{annotations}: a data.yaml has several sets; say which by split: train, val or test")
        else:
            names, pairs = _data_yaml(annotations, split)
        root = Path(*_common(path.parent for path, _ in pairs))
        entries, objects, unreadable, lost, malformed = [], [], [], [], []
        for image_id, (path, labels) in enumerate(pairs, 1):
            try:
                width, height = read_header(path).upright_size()
            except UserError as error:
                unreadable.append(str(error).rpartition("; ")[0])
                lost += [f"{labels}: line {number}" for number, _ in _lines(labels)]
                continue
            name = str(path.relative_to(root))
            entries.append({"id": image_id, "file_name": name, "width": width, "height": height})
            for number, line in _lines(labels):
                row = _parse_line(line, len(names))
                if isinstance(row, str):
                    malformed.append(f"{labels}: line {number}: {line.strip()[:60]!r} {row}")
                    continue
                category, box = row
                pixels = [value * side for value, side in zip(box, (width, height) * 2, strict=True)]
                objects.append(
                    {
                        "id": len(objects) + 1,
                        "where": f"{labels}: line {number}",
                        "written": repr(line.strip()),
                        "image_id": image_id,
                        "category_id": category + 1,
                        "bbox": pixels,
                        "area": None,
                        "iscrowd": 0,
                    }
                )
        findings.add("image_unreadable", range(len(unreadable)), unreadable.__getitem__)
        findings.add("annotation_lost", range(len(lost)), lost.__getitem__)
        findings.add("object_malformed", range(len(malformed)), malformed.__getitem__)
        if not entries:
            raise UserError(f"{annotations}: none of its images can be used ({unreadable[0]}); check the folders")
        dictionary = {
            "images": entries,
            "annotations": objects,
            "categories": [{"id": index, "name": name} for index, name in enumerate(names, 1)],
        }
        records, *rest = parse_coco(dictionary, annotations, root, classes, findings)
        super().__init__([replace(record, upright=True) for record in records], *rest)


def labels_path(image: Path) -> Path:
    """Where YOLO looks for an image's labels: `a/images/train/b.jpg` -> `a/labels/train/b.txt`."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _common(folders: Iterator[Path]) -> tuple[str, ...]:
    """The parts of the deepest folder that holds them all."""
    parts = [folder.parts for folder in folders]
    shared = zip(*parts, strict=False)
    return tuple(names[0] for names in shared if len(set(names)) == 1)


def _folder(labels: Path, images: Path | None) -> tuple[list[str], list[tuple[Path, Path]]]:
    if images is None:
        raise UserError(f"{labels}: a folder of labels needs its folder of images: give `images` too")
    listed = labels / "classes.txt"
    try:
        names = [line.strip() for line in listed.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{listed}: no readable list of class names; write one a line, or give a data.yaml") from None
    return names, [(path, labels / f"{path.stem}.txt") for path in find_images([str(images)])]


def _data_yaml(file: Path, split: str) -> tuple[list[str], list[tuple[Path, Path]]]:
    try:
        content = read_yaml(file.read_text(encoding="utf-8-sig"), str(file))
    except OSError as error:
        raise UserError(f"{file}: cannot read the data set's file ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: no UTF-8 text; give a data.yaml, or a folder of labels") from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        names = [names.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int | float) for name in names):
        raise UserError(f"{file}: 'names' should list the class names, as a list or numbered from 0")
    names = list(map(str, names))
    entries = content.get(split)
    if not entries:
        known = ", ".join(key for key in ("train", "val", "test") if content.get(key))
        raise UserError(f"{file}: there is no '{split}' entry; known: {known or 'none'}")
    entries = entries if isinstance(entries, list) else [entries]
    folder = content.get("path") or "."
    for value in (folder, *entries):
        if not isinstance(value, str):
            raise UserError(f"{file}: 'path' should be a folder and '{split}' folders or text files, not {value!r}")
    root = file.parent / folder
    if not os.path.isdir(root):
        root = file.parent  # `path` is often that of the machine where the file was made
    images = [path for entry in entries for path in _images(root, entry)]
    return names, [(path, labels_path(path)) for path in dict.fromkeys(images)]


def _images(root: Path, entry: str) -> list[Path]:
    path = Path(os.path.normpath(root / entry))
    if not os.path.exists(path):
        path = root / entry.removeprefix("../")  # as some exporters write what lies beside the file
    if os.path.isdir(path):
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise UserError(f"{path}: the folder holds no image ({' '.join(SUFFIXES)}); check the path")
        return found
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError):  # the latter: no text, or a path with a null byte
        raise UserError(f"{path}: neither a folder of images nor a list of their paths; check the path") from None
    found = [Path(os.path.normpath(path.parent / line.strip())) for line in lines if line.strip()]
    foreign = [image for image in found if image.suffix.lower() not in SUFFIXES]
    if foreign or not found:
        what = f"lists {foreign[0]}" if foreign else "the list is empty"
        raise UserError(f"{path}: {what}; write the path of an image a line ({' '.join(SUFFIXES)})")
    return found


def _lines(labels: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines that are not blank; none where there is no file."""
    try:
        text = labels.read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{labels}: cannot read the labels ({error.strerror}); check the path") from None
    yield from ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def _parse_line(line: str, num_classes: int) -> tuple[int, list[float]] | str:
    """Class and box (x, y, w, h) in fractions of the image, or what is wrong with the line."""
    category, *values = line.split()
    try:
        label, numbers = int(category), [float(value) for value in values]
    except ValueError:
        label, numbers = -1, []
    if label < 0 or len(numbers) < 4 or len(numbers) % 2 or not all(map(math.isfinite, numbers)):
        return "is not 'class cx cy w h'"
    if len(numbers) == 4:
        cx, cy, w, h = numbers
        box = [cx - w / 2, cy - h / 2, w, h]
    else:
        xs, ys = numbers[::2], numbers[1::2]
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    if label >= num_classes:
        return f"has a class beyond the last one, {num_classes - 1}"
    if min(numbers) < -MARGIN or max(numbers) > 1 + MARGIN:
        return "is not in fractions of the image"
    return label, box
