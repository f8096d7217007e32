"""A data set in another format, whole or not at all: names, pictures and annotations that its readers take."""

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

# What readers of all three formats take as it is: formats and modes as Pillow names them, 8 bit, with their suffixes.
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),  # JPEG with further pictures behind the first
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
MAX_STEM = 200  # bytes; file systems take 255 for the whole name


@dataclass(frozen=True, slots=True)
class Picture:
    """index: the image's place in its data set; name: its new file name; is_encoded: the pixels that the data set gives
    are written as PNG, in place of a copy of the file."""

    index: int
    name: str
    is_encoded: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Data sets that can be written in the format `target`, checked and named; nothing is written yet.

    lost: what the format has no place for; changed: what is named or stored in another way. Both in words.
    """

    splits: dict[str, DetectionDataset]
    target: str
    pictures: dict[str, list[Picture]]
    lost: list[str]
    changed: list[str]

    def write(self, folder: Path, *, link: bool) -> dict[str, dict]:
        """Write the data sets and their images into a new folder; what to give as `data.<split>` to read them again.

        link: images become hard links, which take no space, where the file system can.
        Raises UserError where `folder` is not empty or something cannot be read or written: the folder then stays as it
        was."""
        folder = Path(os.path.abspath(folder))
        unfinished = folder.with_name(f"{folder.name}.unfinished-{os.getpid()}")
        try:
            if folder.exists() and any(folder.iterdir()):
                raise UserError(f"--out {folder}: not empty", "choose a new folder")
            unfinished.mkdir(parents=True)
            specs = self._write(unfinished, link)
            unfinished.replace(folder)
        except OSError as error:
            raise UserError(
                f"--out {folder}: cannot write {error.filename or 'the data set'} ({error.strerror})",
                "choose another folder or make room",
            ) from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return specs

    def _write(self, folder: Path, link: bool) -> dict[str, dict]:
        write, images = WRITERS[self.target]
        renamed = {
            split: DetectionDataset(
                [replace(dataset.records[picture.index], path=Path(picture.name)) for picture in self.pictures[split]],
                dataset.class_names,
                dataset.category_ids,
            )
            for split, dataset in self.splits.items()
        }
        specs = write(renamed, folder)
        for split, dataset in self.splits.items():
            place = folder / images.format(split=split)
            place.mkdir(parents=True, exist_ok=True)
            for picture in self.pictures[split]:
                if picture.is_encoded:
                    write_image(place / picture.name, dataset[picture.index].image)
                else:
                    _put(dataset.records[picture.index].path.resolve(), place / picture.name, link)
        return specs


def convert(splits: dict[str, DetectionDataset], target: str, folder: Path, *, link: bool) -> dict[str, dict]:
    """`Plan.write` of `plan_conversion`."""
    return plan_conversion(splits, target).write(folder, link=link)


def plan_conversion(splits: dict[str, DetectionDataset], target: str) -> Plan:
    """Decide how the data sets of each split are written in a format, a key of WRITERS. All headers are read.

    An image whose name another image has, in any split and in any case of its letters, gets a number; what a list of
    names or XML cannot hold becomes `_`. A picture that usual readers do not take is written as PNG.
    Raises UserError where a split has no image, where a class name cannot be written, where a picture cannot be read or
    has another size than annotated, or where a picture marked as turned (EXIF) would come away from its boxes: readers
    of YOLO turn it, those of the other formats do not."""
    for split, dataset in splits.items():
        if not len(dataset):
            raise UserError(f"{split}: no image to convert", "give a set with images")
        if dataset.class_names != next(iter(splits.values())).class_names:
            raise UserError(f"{split}: other classes than the first set's", "read all sets with the same classes")
        _check_class_names(dataset.class_names, target)
    stems = {_key(_sound_stem(r.path.stem)) for dataset in splits.values() for r in dataset.records}
    taken: set[str] = set()
    pictures: dict[str, list[Picture]] = {}
    renamed, encoded = [], []
    for split, dataset in splits.items():
        pictures[split] = []
        for index, record in enumerate(dataset.records):
            header = read_header(record.path)
            _check_size(record, header)
            is_encoded = header.is_deep or header.mode not in MODES or header.format not in SUFFIXES
            if is_encoded:
                encoded.append(f"{record.path} ({header.format} {header.mode})")
            else:
                _refuse_turned(record, header, target)
            name = _free_stem(record.path.stem, stems, taken) + _suffix(record.path, header, is_encoded)
            if name != record.path.name:
                renamed.append(f"{record.path} is {name}")
            pictures[split].append(Picture(index, name, is_encoded))
    changed = {"pictures: written as PNG, 8 bit RGB": encoded, "images: another name": renamed}
    changes = [one_line(f"{len(which)} {what} (first: {which[0]})") for what, which in changed.items() if which]
    return Plan(splits, target, pictures, what_is_lost(splits, target), changes)


def what_is_lost(splits: dict[str, DetectionDataset], target: str) -> list[str]:
    """What of these data sets the target format has no place for, in words."""
    records = [record for dataset in splits.values() for record in dataset.records]
    crowds = sum(int(record.crowd.sum()) for record in records)
    areas = sum(int((np.abs(r.area - (r.boxes[:, 2:] - r.boxes[:, :2]).prod(axis=1)) > 1).sum()) for r in records)
    ids = any(r.image_id != i for d in splits.values() for i, r in enumerate(d.records, 1))
    narrow = sum(int(((r.boxes[:, 2:] - r.boxes[:, :2]) < 1).any(axis=1).sum()) for r in records)
    first = next(iter(splits.values()))
    categories, unseen = first.category_ids, int((first.class_counts() == 0).sum())
    lost = {
        f"{crowds} crowd regions: left out": target == "yolo" and crowds,
        f"{areas} areas of segments: their box's from now on": target != "coco" and areas,
        f"{unseen} classes without objects: unknown to it": target == "voc" and unseen,
        f"{narrow} boxes narrower than a pixel: made a pixel wide": target == "voc" and narrow,
        "image ids: counted from 1": target != "coco" and ids,
        "category ids: counted from 1": target != "coco" and categories != tuple(range(1, len(categories) + 1)),
    }
    return [text for text, is_lost in lost.items() if is_lost]


def _check_class_names(names: Sequence[str], target: str) -> None:
    """JSON holds any text; other readers strip it, or take a line for a name."""
    for name in names if target != "coco" else ():
        if not name or name != name.strip() or any(map(_breaks_text, name)):
            raise UserError(
                f"class {name!r}: readers of {target} would not take this name as it is (it is empty, has blanks at an "
                "end, or holds a line break or a control character)",
                "rename the class",
            )


def _breaks_text(character: str) -> bool:
    """Whether a list of lines, XML or UTF-8 cannot hold it."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in "\ufffe\uffff"


def _sound_stem(stem: str) -> str:
    """The stem as readers take it: not hidden, without blanks at its ends, and not too long."""
    stem = "".join("_" if _breaks_text(c) or c in "/\\" else c for c in stem).strip().lstrip(".").strip() or "image"
    while len(stem.encode()) > MAX_STEM:
        stem = stem[:-1].rstrip()
    return stem


def _free_stem(stem: str, stems: set[str], taken: set[str]) -> str:
    """A stem that no image has yet, since annotations are found by it. Where it is `taken`, it gets a number that makes
    it none of `stems` either."""
    free = stem = _sound_stem(stem)
    count = 1
    while _key(free) in taken or (count > 1 and _key(free) in stems):
        count += 1
        free = f"{stem}_{count}"
    taken.add(_key(free))
    return free


def _key(stem: str) -> str:
    """Equal for names that some file systems take for the same."""
    return unicodedata.normalize("NFC", stem).casefold()


def _suffix(path: Path, header: Header, is_encoded: bool) -> str:
    if is_encoded:
        return ".png"
    known = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
    return path.suffix if path.suffix.lower() in known else SUFFIXES[header.format][0]


def _check_size(record: Record, header: Header) -> None:
    if (record.width, record.height) not in ((header.width, header.height), header.upright_size()):
        raise UserError(
            f"{record.path}: {header.width}x{header.height} pixels, its annotations say {record.width}x{record.height}",
            "correct the wrong one, or remove the image",
        )


def _refuse_turned(record: Record, header: Header, target: str) -> None:
    if record.upright == (target == "yolo"):
        return
    if header.orientation != 1 and (record.width, record.height) == (header.width, header.height):
        way = "shown" if record.upright else "stored"
        raise UserError(
            f"{record.path}: marked as turned (EXIF {header.orientation}) and annotated as {way}, while readers of "
            f"{target} would take it the other way and boxes would miss their objects",
            "store it upright first",
        )


def _put(source: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system: a copy does as well
            pass
    shutil.copyfile(source, target)
