"""The conversion of a data set to another format, with names, images and annotations that its readers accept."""

import os
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detector.core.errors import UserError, one_line
from detector.data.dataset import DetectionDataset, Record
from detector.data.formats.writers import WRITERS
from detector.data.images import Header, read_header, write_image

# Image formats and modes, as Pillow names them, that readers of all three annotation formats accept; 8 bit only.
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),  # JPEG with further images behind the first
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
MAX_STEM = 200  # bytes; file systems limit the full name to 255


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image that a conversion writes.

    Attributes:
        index: the index of the image in its data set.
        name: the new file name.
        is_encoded: whether the pixels are written as PNG, instead of a copy of the file.
    """

    index: int
    name: str
    is_encoded: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked conversion that has not written anything yet.

    Attributes:
        splits: the data sets, by the name of the split.
        target: the new format, a key of WRITERS.
        images: the images of each split.
        lost: descriptions of the content that the format cannot store.
        changed: descriptions of the images that get another name or another format.
    """

    splits: dict[str, DetectionDataset]
    target: str
    images: dict[str, list[PlannedImage]]
    lost: list[str]
    changed: list[str]

    def write(self, folder: Path, *, link: bool) -> dict[str, dict]:
        """Write the data sets and their images into a new folder. After an error, the folder is unchanged.

        Args:
            folder: the new folder.
            link: whether to write images as hard links, which need no space. Where the file system has no hard links,
                images are copied.

        Returns:
            The value of `data.<split>` that reads each written data set.

        Raises:
            UserError: `folder` is not empty, or a file cannot be read or written.
        """
        folder = Path(os.path.abspath(folder))
        unfinished = folder.with_name(f"{folder.name}.unfinished-{os.getpid()}")
        try:
            if folder.exists() and any(folder.iterdir()):
                raise UserError(f"--out {folder}: the folder is not empty", "choose a new folder")
            unfinished.mkdir(parents=True)
            specs = self._write(unfinished, link)
            unfinished.replace(folder)
        except OSError as error:
            raise UserError(
                f"--out {folder}: cannot write {error.filename or 'the data set'} ({error.strerror})",
                "choose another folder or free space",
            ) from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return specs

    def _write(self, folder: Path, link: bool) -> dict[str, dict]:
        write, images_pattern = WRITERS[self.target]
        renamed = {
            split: DetectionDataset(
                [replace(dataset.records[image.index], path=Path(image.name)) for image in self.images[split]],
                dataset.class_names,
                dataset.category_ids,
            )
            for split, dataset in self.splits.items()
        }
        specs = write(renamed, folder)
        for split, dataset in self.splits.items():
            images_folder = folder / images_pattern.format(split=split)
            images_folder.mkdir(parents=True, exist_ok=True)
            for image in self.images[split]:
                if image.is_encoded:
                    write_image(images_folder / image.name, dataset[image.index].image)
                else:
                    _link_or_copy(dataset.records[image.index].path.resolve(), images_folder / image.name, link)
        return specs


def convert(splits: dict[str, DetectionDataset], target: str, folder: Path, *, link: bool) -> dict[str, dict]:
    """Plan a conversion and write it.

    Args:
        splits: the data sets, by the name of the split.
        target: the new format, a key of WRITERS.
        folder: the new folder.
        link: as in `Plan.write`.

    Returns:
        As `Plan.write`.

    Raises:
        UserError: as in `plan_conversion` and `Plan.write`.
    """
    return plan_conversion(splits, target).write(folder, link=link)


def plan_conversion(splits: dict[str, DetectionDataset], target: str) -> Plan:
    """Plan the conversion of the data sets, and read the headers of all images.

    Names are compared over all splits and without upper and lower case. An image with the name of another image gets a
    number. A character that a list of names or XML cannot contain becomes `_`. An image in a format that common readers
    do not accept is written as PNG.

    Args:
        splits: the data sets, by the name of the split. All have the same classes.
        target: the new format, a key of WRITERS.

    Raises:
        UserError: a split has no image, the splits have different classes, or a class name cannot be written. UserError
            is also raised where an image cannot be read, has another size than annotated, or has an EXIF orientation
            that separates it from its boxes. Readers of YOLO apply the orientation; the other readers do not.
    """
    for split, dataset in splits.items():
        if not len(dataset):
            raise UserError(f"{split}: the data set has no image to convert", "choose a data set with images")
        if dataset.class_names != next(iter(splits.values())).class_names:
            raise UserError(
                f"{split}: the classes differ from those of the first split", "read all splits with the same classes"
            )
        _check_class_names(dataset.class_names, target)
    stems = {_key(_valid_stem(r.path.stem)) for dataset in splits.values() for r in dataset.records}
    taken: set[str] = set()
    images: dict[str, list[PlannedImage]] = {}
    renamed, encoded = [], []
    for split, dataset in splits.items():
        images[split] = []
        for index, record in enumerate(dataset.records):
            header = read_header(record.path)
            _check_size(record, header)
            is_encoded = header.is_deep or header.mode not in MODES or header.format not in SUFFIXES
            if is_encoded:
                encoded.append(f"{record.path} ({header.format} {header.mode})")
            else:
                _refuse_rotated(record, header, target)
            name = _free_stem(record.path.stem, stems, taken) + _suffix(record.path, header, is_encoded)
            if name != record.path.name:
                renamed.append(f"{record.path} becomes {name}")
            images[split].append(PlannedImage(index, name, is_encoded))
    changed = {"images are written as PNG, 8 bit RGB": encoded, "images get another name": renamed}
    changes = [one_line(f"{len(files)} {change} (first: {files[0]})") for change, files in changed.items() if files]
    return Plan(splits, target, images, what_is_lost(splits, target), changes)


def what_is_lost(splits: dict[str, DetectionDataset], target: str) -> list[str]:
    """Describe the content that the target format cannot store.

    Args:
        splits: the data sets, by the name of the split.
        target: the new format, a key of WRITERS.

    Returns:
        A description for each kind of content, with its number.
    """
    records = [record for dataset in splits.values() for record in dataset.records]
    num_crowds = sum(int(record.crowd.sum()) for record in records)
    num_areas = sum(int((np.abs(r.area - (r.boxes[:, 2:] - r.boxes[:, :2]).prod(axis=1)) > 1).sum()) for r in records)
    is_renumbered = any(r.image_id != i for d in splits.values() for i, r in enumerate(d.records, 1))
    num_narrow = sum(int(((r.boxes[:, 2:] - r.boxes[:, :2]) < 1).any(axis=1).sum()) for r in records)
    first = next(iter(splits.values()))
    categories, num_unseen = first.category_ids, int((first.class_counts() == 0).sum())
    lost = {
        f"{num_crowds} crowd regions: left out": target == "yolo" and num_crowds,
        f"{num_areas} areas of segments: replaced by the areas of the boxes": target != "coco" and num_areas,
        f"{num_unseen} classes without objects: left out": target == "voc" and num_unseen,
        f"{num_narrow} boxes narrower than a pixel: widened to a pixel": target == "voc" and num_narrow,
        "image ids: counted from 1": target != "coco" and is_renumbered,
        "category ids: counted from 1": target != "coco" and categories != tuple(range(1, len(categories) + 1)),
    }
    return [text for text, is_lost in lost.items() if is_lost]


def _check_class_names(names: Sequence[str], target: str) -> None:
    # JSON can contain any text; readers of the other formats strip names or split them into lines
    for name in names if target != "coco" else ():
        if not name or name != name.strip() or any(map(_breaks_text, name)):
            raise UserError(
                f"class {name!r}: readers of {target} would change this name (it is empty, has spaces at an end, or "
                "contains a line break or a control character)",
                "rename the class",
            )


def _breaks_text(character: str) -> bool:
    """Return whether a list of lines, XML or UTF-8 cannot contain the character."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in "\ufffe\uffff"


def _valid_stem(stem: str) -> str:
    """Return a stem that readers accept: not hidden, without spaces at its ends, and not too long."""
    stem = "".join("_" if _breaks_text(c) or c in "/\\" else c for c in stem).strip().lstrip(".").strip() or "image"
    while len(stem.encode()) > MAX_STEM:
        stem = stem[:-1].rstrip()
    return stem


def _free_stem(stem: str, stems: set[str], taken: set[str]) -> str:
    """Return a stem that no image has yet, since readers match annotations to images by the stem.

    A stem in `taken` gets a number, so that the result is neither in `taken` nor in `stems`.
    """
    free = stem = _valid_stem(stem)
    count = 1
    while _key(free) in taken or (count > 1 and _key(free) in stems):
        count += 1
        free = f"{stem}_{count}"
    taken.add(_key(free))
    return free


def _key(stem: str) -> str:
    """Return a key that is equal for names that some file systems treat as the same."""
    return unicodedata.normalize("NFC", stem).casefold()


def _suffix(path: Path, header: Header, is_encoded: bool) -> str:
    if is_encoded:
        return ".png"
    known = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
    return path.suffix if path.suffix.lower() in known else SUFFIXES[header.format][0]


def _check_size(record: Record, header: Header) -> None:
    if (record.width, record.height) not in ((header.width, header.height), header.upright_size()):
        raise UserError(
            f"{record.path}: the image has {header.width}x{header.height} pixels, but its annotated size is "
            f"{record.width}x{record.height}",
            "correct the image or its annotated size",
        )


def _refuse_rotated(record: Record, header: Header, target: str) -> None:
    if record.upright == (target == "yolo"):
        return
    if header.orientation != 1 and (record.width, record.height) == (header.width, header.height):
        way, other_way = ("shown", "stored") if record.upright else ("stored", "shown")
        raise UserError(
            f"{record.path}: the image has the EXIF orientation {header.orientation}, and its boxes refer to the {way} "
            f"image; readers of {target} use the {other_way} image",
            "store the image upright",
        )


def _link_or_copy(source: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
            return
        except OSError:  # hard links do not cross file systems; a copy has the same effect
            pass
    shutil.copyfile(source, target)
