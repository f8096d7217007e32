"""Pascal VOC annotations: a folder of XML files, one an image."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn
from xml.etree import ElementTree

import numpy as np

from detector.core.errors import UserError
from detector.data.checks.findings import Findings
from detector.data.dataset import DATASETS, DetectionDataset
from detector.data.formats.entries import parse_coco
from detector.data.formats.folders import Folder, list_unused, read_lines, suffix
from detector.data.formats.numbers import as_number, whole
from detector.data.images import SUFFIXES

CORNERS = ("xmin", "ymin", "xmax", "ymax")
FROM_1 = "counted from 1"  # what <source><coordinates> says in the files that we write
FRACTIONAL = 0.05  # share of boxes with decimals from which a set does not count whole pixels
TAGS = {"name", "pose", "truncated", "occluded", "difficult", "ignore", "bndbox", "part", "polygon", "segmentation"}


@DATASETS.register("voc")
class VocDataset(DetectionDataset):
    """Pascal VOC XML files and their images.

    class_names: the class names in label order; None takes the names in the split's files, sorted.
    annotations, images: the two folders, with all folders below them. An XML file's picture is the one with the same
    stem, else the one that its <filename> names.
    split: a text file with one image id (an XML's stem) a line, as in ImageSets/Main; None takes every XML, sorted.
    one_based: true reads coordinates as VOC defines them: whole pixels counted from 1 with the last one included, so
    that xmin..xmax covers [xmin - 1, xmax]. false reads them as continuous, from 0. auto decides by all XML files of
    the folder (`is_one_based`). In each case a box with xmin = xmax or ymin = ymax as written is the slip of a single
    click, not an object of one pixel.
    `difficult` and `ignore` objects count neither as objects nor as background.
    Image ids count from 1 in the split's order, category ids from 1 in label order. What is wrong with single files or
    boxes goes to `findings`.
    Raises UserError for a missing folder or split, and where no image is there.
    """

    def __init__(
        self,
        class_names: Sequence[str] | None = None,
        findings: Findings | None = None,
        *,
        images: Path,
        annotations: Path,
        split: Path | None = None,
        one_based: bool | Literal["auto"] = "auto",
    ):
        findings = findings or Findings()
        if not annotations.is_dir():
            raise UserError(f"{annotations}: no such folder of VOC annotations", "check the path")
        pictures, listed = Folder.read(images), Folder.read(annotations)
        known = {name.removesuffix(name[-4:]): name for name in listed.visible() if suffix(name) == ".xml"}
        stems = list(known) if split is None else _read_split(split, known)
        if not known:
            raise UserError(f"{annotations}: the folder holds no .xml file", "check the path")

        files = {stem: _read_file(annotations, stem, known) for stem in dict.fromkeys((*stems, *known))}
        decided = {}
        if one_based == "auto":
            unsaid = [file for file in files.values() if not file.is_from_1]
            corners = [each.corners for file in unsaid for each in file.objects if not each.error]
            one_based = is_one_based(np.array(corners, np.float64).reshape(-1, 4), str(annotations), findings)
            decided = {"one_based": one_based}
        of_file = {stem: _picture(file, stem, pictures) for stem, file in files.items()}

        entries, objects, places, malformed, ambiguous = [], [], [], [], []
        for stem in stems:
            file, (name, others) = files[stem], of_file[stem]
            if file.error:
                continue
            entries.append({"id": len(entries) + 1, "file_name": name, "width": file.width, "height": file.height})
            ambiguous += [f"{file.path}: {name} is taken, not {', '.join(others)}"] if others else []
            for number, each in enumerate(file.objects, 1):
                where = f"{file.path}: object {number}"
                if each.error:
                    malformed.append(f"{where}: {each.error}")
                    continue
                places.append((where, f"box {' '.join(f'{v:g}' for v in each.corners)} ({', '.join(CORNERS)})"))
                box = _box(each.corners, one_based or (file.is_from_1 and bool(decided)))
                entry = {"id": len(places), "image_id": len(entries), "iscrowd": int(each.left_out), "bbox": box}
                objects.append((each.name, entry | {"area": None}))
        bad = [f"{files[stem].path}: {files[stem].error}" for stem in stems if files[stem].error]
        tags = sorted({tag for stem in stems for tag in files[stem].tags} - TAGS)
        findings.add("annotation_file", range(len(bad)), bad.__getitem__)
        findings.add("object_malformed", range(len(malformed)), malformed.__getitem__)
        findings.add("image_ambiguous", range(len(ambiguous)), ambiguous.__getitem__)
        findings.add("key_unknown", range(len(tags)), lambda i: f"{annotations}: <{tags[i]}> in <object>")
        if not entries:
            raise UserError(f"{annotations}: none of its files can be used ({bad[0]})", "check the folders")

        names = list(class_names or ())
        names += sorted({name for name, _ in objects} - set(names))
        if not names:
            raise UserError(f"{annotations}: none of its files has an object to learn from", "check the folder")
        category_ids = {name: index for index, name in enumerate(names, 1)}
        dictionary = {
            "images": entries,
            "annotations": [{**entry, "category_id": category_ids[name]} for name, entry in objects],
            "categories": [{"id": index, "name": name} for name, index in category_ids.items()],
        }
        records, class_names, ids = parse_coco(dictionary, annotations, pictures, class_names, findings, places=places)
        # a picture that another split's file names is not without annotations
        used = [*(pictures.path(name) for name, _ in of_file.values()), *(files[stem].path for stem in stems)]
        read = {files[stem].path for stem in stems}
        unlisted = [
            path for path in map(listed.path, listed.visible()) if suffix(path.name) == ".xml" and path not in read
        ]
        findings.add("annotation_unlisted", range(len(unlisted)), lambda i: str(unlisted[i]))
        list_unused([pictures, listed], [*used, *unlisted], findings)
        super().__init__(records, class_names, ids, decided=decided)


def is_one_based(corners: np.ndarray, where: str, findings: Findings) -> bool:
    """Decide by all boxes (N, 4) as written whether they count whole pixels from 1, as VOC does.

    They do not where 5% of the boxes have decimals, or where more left and top edges lie at 0 than at 1. What speaks
    against VOC's definition is a finding in any case.
    """
    fractional = (corners % 1 != 0).any(axis=1)
    at_zero, at_one = (corners[:, :2] < 1).any(axis=1), (corners[:, :2] == 1).any(axis=1)
    is_continuous = fractional.mean() >= FRACTIONAL if len(corners) else False
    is_continuous |= bool(at_zero.sum() > at_one.sum())
    against = np.flatnonzero(fractional | at_zero)
    evidence = (
        f"{fractional.sum()} of {len(corners)} boxes have decimals, {at_zero.sum()} begin at 0, {at_one.sum()} at 1"
    )
    decided = "continuous, from 0" if is_continuous else "whole pixels from 1"
    findings.add(
        "box_continuous" if is_continuous else "box_one_based",
        against,
        lambda i: f"{where}: {' '.join(f'{value:g}' for value in corners[i])}; {evidence}: read as {decided}",
    )
    return not is_continuous


@dataclass(frozen=True, slots=True)
class _Object:
    """One <object> as written. error: what is wrong with it, else empty."""

    name: str = ""
    corners: tuple[float, ...] = ()
    left_out: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class _File:
    """One XML file. picture: what <filename> says; width and height: None where <size> has no usable number; is_from_1:
    the file itself says that its coordinates count from 1."""

    path: Path
    picture: str = ""
    width: int | None = None
    height: int | None = None
    is_from_1: bool = False
    objects: tuple[_Object, ...] = ()
    tags: frozenset[str] = frozenset()
    error: str = ""


class _TreeBuilder(ElementTree.TreeBuilder):
    """Refuses a document type: annotations need none, and its entities can expand to gigabytes."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise ElementTree.ParseError("it declares a DOCTYPE")


def _read_file(folder: Path, stem: str, known: dict[str, str]) -> _File:
    path = folder / known.get(stem, f"{stem}.xml")
    if stem not in known:
        return _File(path, error="cannot be read (there is no such file in the folder)")
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_TreeBuilder()))
    except OSError as error:
        return _File(path, error=f"cannot be read ({error.strerror})")
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: an encoding it cannot read
        return _File(path, error=f"not a valid annotation file ({error})")
    if root.tag != "annotation":  # CVAT's own format, say, or a namespace
        return _File(path, error=f"its root is <{root.tag}>, not <annotation> as in Pascal VOC")
    elements = root.findall("object")
    width, height = (whole(root.findtext(f"size/{side}")) for side in ("width", "height"))
    return _File(
        path,
        (root.findtext("filename") or "").strip().replace("\\", "/"),
        width,
        height,
        root.findtext("source/coordinates") == FROM_1,
        tuple(map(_read_object, elements)),
        frozenset(child.tag for element in elements for child in element),
    )


def _read_object(element: ElementTree.Element) -> _Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        return _Object(error="<name> is missing")
    corners = []
    for corner in CORNERS:
        text = element.findtext(f"bndbox/{corner}")
        if text is None:
            return _Object(error=f"<bndbox/{corner}> is missing")
        value = as_number(text)
        if value is None:
            return _Object(error=f"<bndbox/{corner}> is {text!r}, not a finite number")
        corners.append(value)
    texts = ((element.findtext(tag) or "").strip().lower() for tag in ("difficult", "ignore"))
    return _Object(name, tuple(corners), any(text in ("1", "true", "yes") for text in texts))


def _picture(file: _File, stem: str, pictures: Folder) -> tuple[str, list[str]]:
    """The name of an XML file's picture, and other pictures that it could mean as well: the picture with the file's own
    stem comes before another that <filename> names."""
    same = pictures.images_with_stem(stem)
    named = _named(file.picture, os.path.dirname(stem), pictures)
    if named is not None and (named in same or not same):
        return named, []
    if not same:
        return file.picture or stem, []
    return same[0], [name for name in (*same[1:], named) if name]


def _named(written: str, folder: str, pictures: Folder) -> str | None:
    """The picture that <filename> means in an XML file of `folder`: by its path, by its name alone, or by its name
    without a suffix."""
    base = written.rpartition("/")[2]
    found = next((name for text in (written, base) if text and (name := pictures.find(text))), None)
    if found or not base:
        return found
    is_bare = suffix(base) not in SUFFIXES
    same = pictures.images_with_stem(os.path.join(folder, base if is_bare else os.path.splitext(base)[0]))
    same = [name for name in same if is_bare or os.path.basename(name).lower() == base.lower()]
    return same[0] if len(same) == 1 else None


def _box(corners: tuple[float, ...], one_based: bool) -> list[float]:
    """(x, y, w, h) of xmin, ymin, xmax, ymax as written."""
    x1, y1, x2, y2 = corners
    first = 1.0 if one_based else 0.0
    width, height = (0.0 if low == high else high - low + first for low, high in ((x1, x2), (y1, y2)))
    return [x1 - first, y1 - first, width, height]


def _read_split(split: Path, known: dict[str, str]) -> list[str]:
    """The stems of a split's lines. A line may have a second column of -1, 0 or 1, as VOC's lists for each class do, a
    suffix, or the path of the picture; a line that fits no XML file, or several, stays as it is."""
    by_name = {stem.rpartition("/")[2]: stem for stem in known}
    num_files = Counter(stem.rpartition("/")[2] for stem in known)
    by_name = {name: stem for name, stem in by_name.items() if num_files[name] == 1}

    def stem(line: str) -> str:
        name, *columns = line.split()
        for text in (line, name) if columns in (["-1"], ["0"], ["1"]) else (line,):
            name = text.replace("\\", "/")
            bare = os.path.splitext(name)[0] if suffix(name) in (*SUFFIXES, ".xml") else name
            for candidate in (name, bare, bare.rpartition("/")[2]):
                if candidate in known or candidate in by_name:
                    return candidate if candidate in known else by_name[candidate]
        return line

    stems = list(map(stem, read_lines(split, "the split")))
    if not stems:
        raise UserError(f"{split}: the split is empty", "write one image id a line")
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise UserError(f"{split}: '{twice}' occurs twice", "remove one of the lines")
    return stems
