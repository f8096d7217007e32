"""YOLO labels: a text file for each image, a line `class cx cy w h` for each box, in fractions of the image."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detector.core.errors import UserError
from detector.core.strict_yaml import read_yaml
from detector.data.checks.findings import Findings
from detector.data.dataset import DATASETS, DetectionDataset
from detector.data.formats.entries import parse_coco
from detector.data.formats.folders import Folder, list_unused, read_lines, read_unicode, suffix
from detector.data.formats.numbers import whole
from detector.data.formats.yolo_rows import Line, has_labels, numbered_lines, read_objects
from detector.data.headers import read_headers
from detector.data.images import SUFFIXES

KEYS = {"path", "train", "val", "test", "names", "nc", "kpt_shape", "flip_idx", "download", "roboflow", "channels"}

NULL = ("", "~", "null", "Null", "NULL")

Pair = tuple[Path, Path]  # an image and its label file


@DATASETS.register("yolo")
class YoloDataset(DetectionDataset):
    """A YOLO data set.

    annotations: its data.yaml, whose `split` entry gives the images (a folder with all folders below it, a list of
    paths in a text file, or several of these, below the file's `path`, or else below the file's own folder) and whose
    `names` gives the class names; an image's labels are at its own path with the last `images` folder replaced by
    `labels`, and .txt for its suffix. Or the folder of the label files, with `images` the folder of the images and the
    class names, one a line, in `classes.txt` beside the labels. An image without a label file, or with an empty one,
    has no objects.
    rows: what a line of more than four coordinates is. polygon: it becomes its box. box: its first four coordinates are
    the box, the rest are keypoints, a score or a track's number. auto: box where data.yaml declares `kpt_shape`;
    polygon where the lines differ in length, or where a quarter of them cannot begin with a box; else such lines are
    ambiguous, and refused.
    class_names: the class names in label order; None takes those listed. Image ids count from 1 in the order of the
    images, category ids from 1 in the file's. Sizes are those of the images as a person sees them (EXIF), as labels are
    made. What is wrong with single images or lines goes to `findings`.
    Raises UserError for a missing or malformed file or folder, and where no image can be read or has a label file.
    """

    def __init__(
        self,
        class_names: Sequence[str] | None = None,
        findings: Findings | None = None,
        *,
        annotations: Path,
        images: Path | None = None,
        split: Literal["train", "val", "test"] | None = None,
        rows: Literal["auto", "box", "polygon"] = "auto",
    ):
        findings = findings or Findings()
        if annotations.is_dir():
            source = _read_folder(annotations, images)
        elif split is None:
            raise UserError(f"{annotations}: a data.yaml has several sets", "say which by split: train, val or test")
        else:
            source = _read_data_yaml(annotations, split, findings)
        root = Path(*_common(path.parent for path, _ in source.pairs))
        names = [str(path.relative_to(root)) for path, _ in source.pairs]
        headers = dict(zip(names, read_headers([path for path, _ in source.pairs]), strict=True))
        files = dict.fromkeys(labels for _, labels in source.pairs)
        lines = [Line(labels, number, text) for labels in files for number, text in numbered_lines(labels)]
        if rows == "auto" and source.num_keypoint_values:
            rows = "box"
        objects = read_objects(lines, len(source.names), source.num_keypoint_values, rows, findings)

        entries, annotated, places = [], [], []
        for image_id, (name, (_, labels)) in enumerate(zip(names, source.pairs, strict=True), 1):
            header = headers[name]
            size = (1, 1) if isinstance(header, str) else header.upright_size()
            entries.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
            for line, category, box in objects.get(labels, ()):
                places.append((line.where, repr(line.text.strip())))
                entry = {"id": len(places), "image_id": image_id, "category_id": category + 1, "iscrowd": 0}
                bbox = [value * side for value, side in zip(box, size * 2, strict=True)]
                annotated.append(entry | {"bbox": bbox, "area": None})
        dictionary = {
            "images": entries,
            "annotations": annotated,
            "categories": [{"id": index, "name": name} for index, name in enumerate(source.names, 1)],
        }
        folder = Folder(root, dict.fromkeys(names))
        parsed = parse_coco(
            dictionary, annotations, folder, class_names, findings, places=places, headers=headers, upright=True
        )
        super().__init__(*parsed)
        _account(source, annotations, findings)


@dataclass(frozen=True, slots=True)
class _Source:
    """What a data set consists of: class names, pairs of an image and its label file, the folders whose files are to be
    accounted for, whether all of their labels belong to it, and how many values follow a row's box, where that is
    declared."""

    names: list[str]
    pairs: list[Pair]
    folders: list[Folder]
    is_whole: bool
    num_keypoint_values: int = 0


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


def _read_folder(labels: Path, images: Path | None) -> _Source:
    if images is None:
        raise UserError(f"{labels}: a folder of labels needs its folder of images", "give `images` too")
    listed = labels / "classes.txt"
    names = read_lines(listed, "the list of class names, one a line")
    pictures = _pictures(images)
    pairs = [(pictures.path(name), labels / f"{os.path.splitext(name)[0]}.txt") for name in pictures.images()]
    return _Source(names, pairs, [pictures, Folder.read(labels)], is_whole=False)


def _pictures(path: Path) -> Folder:
    folder = Folder.read(path)
    if not folder.images():
        what = "the folder holds no image" if path.is_dir() else "no such folder"
        raise UserError(f"{path}: {what} ({' '.join(SUFFIXES)})", "check the path")
    return folder


def _read_data_yaml(file: Path, split: str, findings: Findings) -> _Source:
    content = read_yaml(read_unicode(file, "the data set's file"), str(file), as_text=True)
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        names = [names.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}: 'names' should list the class names, as a list or numbered from 0")
    content = {key: value for key, value in content.items() if value not in NULL}
    if (count := content.get("nc")) is not None and whole(count) != len(names):
        findings.add("count_differs", [0], lambda _: f"{file}: nc is {count}, and 'names' has {len(names)}")
    unknown = sorted(content.keys() - KEYS)
    findings.add("key_unknown", range(len(unknown)), lambda i: f"{file}: {unknown[i]}")
    entries = content.get(split)
    if not entries:
        known = ", ".join(key for key in ("train", "val", "test") if content.get(key))
        raise UserError(f"{file}: there is no '{split}' entry", f"known: {known or 'none'}")
    entries = entries if isinstance(entries, list) else [entries]
    folder = content.get("path") or "."
    for value in (folder, *entries):
        if not isinstance(value, str):
            raise UserError(f"{file}: 'path' should be a folder and '{split}' folders or text files, not {value!r}")
    root = file.parent / Path(folder.replace("\\", "/")).expanduser()
    if not os.path.isdir(root):
        root = file.parent  # `path` is often that of the machine where the file was made
    images: dict[Path, None] = {}
    is_whole = True
    inside: set[Path] = set()
    for entry in entries:
        found, folder = _images(root, entry.replace("\\", "/"))
        images |= dict.fromkeys(found)
        inside |= {path.parent for path in found} | ({folder} if folder else set())
        is_whole &= folder is not None
    pairs = [(path, labels_path(path)) for path in images]
    inside |= {labels_path(folder / "x").parent for folder in inside}
    folders = [Folder.read(path) for path in _topmost(inside)]
    return _Source(names, pairs, folders, is_whole, _keypoint_values(content, file))


def _topmost(folders: set[Path]) -> list[Path]:
    """The folders that lie in no other of them."""
    return [folder for folder in sorted(folders) if not folders & set(folder.parents)]


def _keypoint_values(content: dict, file: Path) -> int:
    """Values for keypoints in each row, as `kpt_shape: [17, 3]` declares them."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    sides = [whole(side) or 0 for side in shape] if isinstance(shape, list) else []
    if len(sides) != 2 or sides[0] < 1 or sides[1] not in (2, 3):
        raise UserError(f"{file}: 'kpt_shape' should be [number of keypoints, 2 or 3], not {shape!r}")
    return sides[0] * sides[1]


def _images(root: Path, entry: str) -> tuple[list[Path], Path | None]:
    """The images of a folder and the folder, or the images of a list and None."""
    path = Path(os.path.normpath(root / Path(entry).expanduser()))
    if not os.path.exists(path):
        path = root / entry.removeprefix("../")  # as some exporters write what lies beside the file
    if os.path.isdir(path):
        pictures = _pictures(path)
        return [pictures.path(name) for name in pictures.images()], path
    lines = read_lines(path, "the folder of images, or the list of their paths")
    foreign = [line for line in lines if suffix(line) not in SUFFIXES]
    if foreign or not lines:
        what = f"lists {foreign[0]}" if foreign else "the list is empty"
        raise UserError(f"{path}: {what}", f"write the path of an image a line ({' '.join(SUFFIXES)})")
    return [_listed(path.parent, line) for line in lines], None


def _listed(folder: Path, line: str) -> Path:
    """An image of a list, with `/` for Windows' separator where there is no file as the line is written."""
    path = Path(os.path.normpath(folder / line))
    return path if os.path.exists(path) else Path(os.path.normpath(folder / line.replace("\\", "/")))


def _account(source: _Source, annotations: Path, findings: Findings) -> None:
    """Add images without labels, label files without images, and files that are neither."""
    missing = [pair for pair in source.pairs if not pair[1].is_file()]
    if len(missing) == len(source.pairs):
        raise UserError(
            f"{annotations}: none of the {len(missing)} images has a label file (the first one's would be "
            f"{missing[0][1]})",
            "check where the labels are",
        )
    findings.add("image_unlabelled", range(len(missing)), lambda i: f"{missing[i][0]}: no {missing[i][1]}")
    first: dict[Path, Path] = {}
    twins = [f"{path} and {first[labels]}" for path, labels in source.pairs if first.setdefault(labels, path) != path]
    findings.add("image_twins", range(len(twins)), twins.__getitem__)
    used = [annotations, *(path for pair in source.pairs for path in pair)]
    for folder in source.folders:
        used += [folder.path(name) for name in folder.names if Path(name).name == "classes.txt"]
    known = {os.path.abspath(path) for path in used}
    files = {os.path.abspath(folder.path(name)) for folder in source.folders for name in folder.visible()}
    orphans = [Path(path) for path in sorted(files - known) if has_labels(Path(path))]
    kind = "label_orphan" if source.is_whole else "annotation_unlisted"  # which another part of the set may name
    findings.add(kind, range(len(orphans)), lambda i: f"{orphans[i]}: these labels have no image")
    list_unused(source.folders, [*used, *orphans], findings)
