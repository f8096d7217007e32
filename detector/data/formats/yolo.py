"""YOLO labels: a text file for each image, with a line `class cx cy w h` in fractions of the image for each box."""

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
from detector.data.formats.numbers import as_integer
from detector.data.formats.yolo_rows import Line, has_labels, numbered_lines, read_objects
from detector.data.headers import read_headers
from detector.data.images import SUFFIXES

KEYS = {"path", "train", "val", "test", "names", "nc", "kpt_shape", "flip_idx", "download", "roboflow", "channels"}

NULL = ("", "~", "null", "Null", "NULL")

Pair = tuple[Path, Path]  # an image and its label file


@DATASETS.register("yolo")
class YoloDataset(DetectionDataset):
    """A YOLO data set.

    The `split` entry of data.yaml gives the images: a folder with its subfolders, a text file with a list of paths, or
    several of these. They are relative to `path` in data.yaml or, where that folder does not exist, to the folder of
    data.yaml. `names` gives the class names. The path of a label file is the path of its image, with the last folder
    `images` replaced by `labels` and the suffix replaced by .txt. An image without a label file, or with an empty label
    file, has no objects.

    Image ids count from 1 in the order of the images, and category ids count from 1 in the order of the class names.
    Labels and sizes refer to the images as their EXIF orientation shows them.

    Args:
        class_names: the class names in label order. None takes the listed names.
        findings: receives the problems of single images and lines.
        annotations: the data.yaml, or the folder of the label files with the class names in `classes.txt`, a name on
            each line.
        images: the folder of the images, where `annotations` is a folder.
        split: the entry of data.yaml that gives the images, where `annotations` is a file.
        rows: the meaning of lines with more than four coordinates. polygon takes the bounding box of the points. box
            takes the first four coordinates as the box and ignores the others (keypoints, a score or a track id). auto
            means box where data.yaml declares `kpt_shape`. Otherwise auto means polygon where the lines differ in
            length, or where at least a quarter of them cannot begin with a box. auto refuses other lines as ambiguous.

    Raises:
        UserError: a file or folder is missing or malformed, no image can be read, or no image has a label file.
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
            raise UserError(
                f"{annotations}: data.yaml has several splits, and no split is selected",
                "set split to train, val or test in the section of the data set",
            )
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

        entries, annotated, locations = [], [], []
        for image_id, (name, (_, labels)) in enumerate(zip(names, source.pairs, strict=True), 1):
            header = headers[name]
            size = (1, 1) if isinstance(header, str) else header.upright_size()
            entries.append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
            for line, category, box in objects.get(labels, ()):
                locations.append((line.location, repr(line.text.strip())))
                entry = {"id": len(locations), "image_id": image_id, "category_id": category + 1, "iscrowd": 0}
                bbox = [value * side for value, side in zip(box, size * 2, strict=True)]
                annotated.append(entry | {"bbox": bbox, "area": None})
        dictionary = {
            "images": entries,
            "annotations": annotated,
            "categories": [{"id": index, "name": name} for index, name in enumerate(source.names, 1)],
        }
        folder = Folder(root, dict.fromkeys(names))
        parsed = parse_coco(
            dictionary, annotations, folder, class_names, findings, locations=locations, headers=headers, upright=True
        )
        super().__init__(*parsed)
        _check_files(source, annotations, findings)


@dataclass(frozen=True, slots=True)
class _Source:
    """The content of a data set.

    Attributes:
        names: the class names.
        pairs: each image and its label file.
        folders: the folders whose unused files are reported.
        has_all_labels: whether all label files in the folders belong to the data set.
        num_keypoint_values: the declared number of keypoint values after the box of a line, otherwise 0.
    """

    names: list[str]
    pairs: list[Pair]
    folders: list[Folder]
    has_all_labels: bool
    num_keypoint_values: int = 0


def labels_path(image: Path) -> Path:
    """Return the path of the label file of an image: `a/images/train/b.jpg` -> `a/labels/train/b.txt`."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _common(folders: Iterator[Path]) -> tuple[str, ...]:
    """Return the parts of the deepest folder that contains all folders."""
    parts = [folder.parts for folder in folders]
    shared = zip(*parts, strict=False)
    return tuple(names[0] for names in shared if len(set(names)) == 1)


def _read_folder(labels: Path, images: Path | None) -> _Source:
    if images is None:
        raise UserError(f"{labels}: the folder of images is missing", "set images in the section of the data set")
    names = read_lines(labels / "classes.txt", "the list of class names")
    folder = _read_images(images)
    pairs = [(folder.path(name), labels / f"{os.path.splitext(name)[0]}.txt") for name in folder.images()]
    return _Source(names, pairs, [folder, Folder.read(labels)], has_all_labels=False)


def _read_images(path: Path) -> Folder:
    folder = Folder.read(path)
    if not folder.images():
        problem = "the folder has no image" if path.is_dir() else "the folder does not exist"
        raise UserError(f"{path}: {problem} ({' '.join(SUFFIXES)})", "check the path")
    return folder


def _read_data_yaml(file: Path, split: str, findings: Findings) -> _Source:
    content = read_yaml(read_unicode(file, "the data set"), str(file), as_text=True)
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        names = [names.get(str(number)) for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{file}: 'names' does not list the class names", "write a list of names, or names numbered from 0"
        )
    content = {key: value for key, value in content.items() if value not in NULL}
    if (count := content.get("nc")) is not None and as_integer(count) != len(names):
        findings.add("count_differs", [0], lambda _: f"{file}: nc is {count}, but 'names' has {len(names)} names")
    unknown = sorted(content.keys() - KEYS)
    findings.add("key_unknown", range(len(unknown)), lambda i: f"{file}: key '{unknown[i]}'")
    entries = content.get(split)
    if not entries:
        known = ", ".join(key for key in ("train", "val", "test") if content.get(key))
        raise UserError(
            f"{file}: the entry '{split}' is missing",
            f"add the entry, or set split to another entry (known: {known or 'none'})",
        )
    entries = entries if isinstance(entries, list) else [entries]
    folder = content.get("path") or "."
    for value in (folder, *entries):
        if not isinstance(value, str):
            raise UserError(
                f"{file}: {value!r} is not the path of a folder or a text file", f"correct 'path' or '{split}'"
            )
    root = file.parent / Path(folder.replace("\\", "/")).expanduser()
    if not os.path.isdir(root):
        root = file.parent  # `path` often refers to the computer on which the file was written
    images: dict[Path, None] = {}
    has_all_labels = True
    inside: set[Path] = set()
    for entry in entries:
        paths, folder = _find_images(root, entry.replace("\\", "/"))
        images |= dict.fromkeys(paths)
        inside |= {path.parent for path in paths} | ({folder} if folder else set())
        has_all_labels &= folder is not None
    pairs = [(path, labels_path(path)) for path in images]
    inside |= {labels_path(folder / "x").parent for folder in inside}
    folders = [Folder.read(path) for path in _topmost(inside)]
    return _Source(names, pairs, folders, has_all_labels, _keypoint_values(content, file))


def _topmost(folders: set[Path]) -> list[Path]:
    """Return the folders that are not inside another of the folders."""
    return [folder for folder in sorted(folders) if not folders & set(folder.parents)]


def _keypoint_values(content: dict, file: Path) -> int:
    """Return the number of keypoint values on each line: 51 for `kpt_shape: [17, 3]`, and 0 without `kpt_shape`."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    sides = [as_integer(side) or 0 for side in shape] if isinstance(shape, list) else []
    if len(sides) != 2 or sides[0] < 1 or sides[1] not in (2, 3):
        raise UserError(f"{file}: kpt_shape is {shape!r}", "write [number of keypoints, 2 or 3]")
    return sides[0] * sides[1]


def _find_images(root: Path, entry: str) -> tuple[list[Path], Path | None]:
    """Return the images of a folder and the folder, or the images of a list and None."""
    path = Path(os.path.normpath(root / Path(entry).expanduser()))
    if not os.path.exists(path):
        path = root / entry.removeprefix("../")  # some exporters write `../` before a folder next to data.yaml
    if os.path.isdir(path):
        folder = _read_images(path)
        return [folder.path(name) for name in folder.images()], path
    lines = read_lines(path, "the folder of images, or the list of their paths")
    others = [line for line in lines if suffix(line) not in SUFFIXES]
    if others or not lines:
        problem = f"{others[0]} is not an image" if others else "the list is empty"
        raise UserError(f"{path}: {problem}", f"write the path of an image on each line ({' '.join(SUFFIXES)})")
    return [_listed(path.parent, line) for line in lines], None


def _listed(folder: Path, line: str) -> Path:
    """Return the path of an image on a list. Where no file has the path as written, `/` replaces the separators."""
    path = Path(os.path.normpath(folder / line))
    return path if os.path.exists(path) else Path(os.path.normpath(folder / line.replace("\\", "/")))


def _check_files(source: _Source, annotations: Path, findings: Findings) -> None:
    """Report images without labels, label files without images, and other unused files."""
    missing = [pair for pair in source.pairs if not pair[1].is_file()]
    if len(missing) == len(source.pairs):
        raise UserError(
            f"{annotations}: none of the {len(missing)} images has a label file (first missing file: {missing[0][1]})",
            "check the folder of the labels",
        )
    findings.add("image_unlabelled", range(len(missing)), lambda i: f"{missing[i][0]}: {missing[i][1]} does not exist")
    first: dict[Path, Path] = {}
    twins = [f"{path} and {first[labels]}" for path, labels in source.pairs if first.setdefault(labels, path) != path]
    findings.add("image_twins", range(len(twins)), twins.__getitem__)
    used = [annotations, *(path for pair in source.pairs for path in pair)]
    for folder in source.folders:
        used += [folder.path(name) for name in folder.names if Path(name).name == "classes.txt"]
    known = {os.path.abspath(path) for path in used}
    files = {os.path.abspath(folder.path(name)) for folder in source.folders for name in folder.visible()}
    orphans = [Path(path) for path in sorted(files - known) if has_labels(Path(path))]
    kind = "label_orphan" if source.has_all_labels else "annotation_unlisted"  # another split may have the image
    findings.add(kind, range(len(orphans)), lambda i: f"{orphans[i]}: the labels have no image")
    list_unused(source.folders, [*used, *orphans], findings)
