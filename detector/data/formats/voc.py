"""Pascal VOC annotations: a folder with an XML file for each image."""

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
from detector.data.formats.numbers import as_integer, as_number
from detector.data.images import SUFFIXES

CORNERS = ("xmin", "ymin", "xmax", "ymax")
FROM_1 = "counted from 1"  # the text of <source><coordinates> in the files that `write_voc` writes
FRACTIONAL = 0.05  # the fraction of boxes with decimals from which coordinates count as continuous
TAGS = {"name", "pose", "truncated", "occluded", "difficult", "ignore", "bndbox", "part", "polygon", "segmentation"}


@DATASETS.register("voc")
class VocDataset(DetectionDataset):
    """Pascal VOC XML files and their images.

    Objects with `difficult` or `ignore` count neither as objects nor as background. Image ids count from 1 in the order
    of the split, and category ids count from 1 in label order. A box with xmin = xmax or ymin = ymax as written has no
    area: it is the result of an accidental click, not an object of one pixel.

    Args:
        class_names: the class names in label order. None takes the names in the files of the split, sorted.
        findings: receives the problems of single files and boxes.
        images: the folder of the images, with its subfolders. The image of an XML file has the same stem. Where no
            image has this stem, <filename> gives the image.
        annotations: the folder of the XML files, with its subfolders.
        split: a text file with an image id (the stem of an XML file) on each line, as in ImageSets/Main. None takes
            all XML files, sorted.
        one_based: true reads coordinates as VOC defines them: pixel numbers from 1, with the last pixel
            included, so that xmin..xmax covers [xmin - 1, xmax]. false reads continuous coordinates from 0. auto
            decides by all XML files of the folder (see `is_one_based`).

    Raises:
        UserError: a folder or the split is missing, or no image can be used.
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
            raise UserError(f"{annotations}: the folder of VOC annotations does not exist", "check the path")
        image_folder, xml_folder = Folder.read(images), Folder.read(annotations)
        known = {name.removesuffix(name[-4:]): name for name in xml_folder.visible() if suffix(name) == ".xml"}
        stems = list(known) if split is None else _read_split(split, known)
        if not known:
            raise UserError(f"{annotations}: the folder has no .xml file", "check the path")

        files = {stem: _read_file(annotations, stem, known) for stem in dict.fromkeys((*stems, *known))}
        decided = {}
        if one_based == "auto":
            undeclared = [file for file in files.values() if not file.is_from_1]
            corners = [item.corners for file in undeclared for item in file.objects if not item.error]
            one_based = is_one_based(np.array(corners, np.float64).reshape(-1, 4), str(annotations), findings)
            decided = {"one_based": one_based}
        image_of = {stem: _match_image(file, stem, image_folder) for stem, file in files.items()}

        entries, objects, locations, malformed, ambiguous = [], [], [], [], []
        for stem in stems:
            file, (name, others) = files[stem], image_of[stem]
            if file.error:
                continue
            entries.append({"id": len(entries) + 1, "file_name": name, "width": file.width, "height": file.height})
            ambiguous += [f"{file.path}: {name} is used instead of {', '.join(others)}"] if others else []
            for number, item in enumerate(file.objects, 1):
                location = f"{file.path}: object {number}"
                if item.error:
                    malformed.append(f"{location}: {item.error}")
                    continue
                locations.append((location, f"box {' '.join(f'{v:g}' for v in item.corners)} ({', '.join(CORNERS)})"))
                box = _box(item.corners, one_based or (file.is_from_1 and bool(decided)))
                entry = {"id": len(locations), "image_id": len(entries), "iscrowd": int(item.is_ignored), "bbox": box}
                objects.append((item.name, entry | {"area": None}))
        bad = [f"{files[stem].path}: {files[stem].error}" for stem in stems if files[stem].error]
        tags = sorted({tag for stem in stems for tag in files[stem].tags} - TAGS)
        findings.add("annotation_file", range(len(bad)), bad.__getitem__)
        findings.add("object_malformed", range(len(malformed)), malformed.__getitem__)
        findings.add("image_ambiguous", range(len(ambiguous)), ambiguous.__getitem__)
        findings.add("key_unknown", range(len(tags)), lambda i: f"{annotations}: <{tags[i]}> in <object>")
        if not entries:
            raise UserError(
                f"{annotations}: no annotation file can be used (first problem: {bad[0]})", "check the folders"
            )

        names = list(class_names or ())
        names += sorted({name for name, _ in objects} - set(names))
        if not names:
            raise UserError(
                f"{annotations}: no annotation file has an object, so there is no class", "check the folder"
            )
        category_ids = {name: index for index, name in enumerate(names, 1)}
        dictionary = {
            "images": entries,
            "annotations": [{**entry, "category_id": category_ids[name]} for name, entry in objects],
            "categories": [{"id": index, "name": name} for name, index in category_ids.items()],
        }
        records, class_names, ids = parse_coco(
            dictionary, annotations, image_folder, class_names, findings, locations=locations
        )
        # the images of other splits have annotations too
        used = [*(image_folder.path(name) for name, _ in image_of.values()), *(files[stem].path for stem in stems)]
        read = {files[stem].path for stem in stems}
        unlisted = [
            path
            for path in map(xml_folder.path, xml_folder.visible())
            if suffix(path.name) == ".xml" and path not in read
        ]
        findings.add("annotation_unlisted", range(len(unlisted)), lambda i: str(unlisted[i]))
        list_unused([image_folder, xml_folder], [*used, *unlisted], findings)
        super().__init__(records, class_names, ids, decided=decided)


def is_one_based(corners: np.ndarray, source: str, findings: Findings) -> bool:
    """Decide whether the boxes of a data set are integer pixel numbers from 1, as VOC defines them.

    They are not if at least 5% of the boxes have decimals, or if more boxes begin at 0 than at 1.

    Args:
        corners: (N, 4) xmin, ymin, xmax, ymax as written.
        source: the annotation folder, for messages.
        findings: receives the boxes that contradict the definition of VOC, whatever the decision is.
    """
    fractional = (corners % 1 != 0).any(axis=1)
    at_zero, at_one = (corners[:, :2] < 1).any(axis=1), (corners[:, :2] == 1).any(axis=1)
    is_continuous = fractional.mean() >= FRACTIONAL if len(corners) else False
    is_continuous |= bool(at_zero.sum() > at_one.sum())
    contradicting = np.flatnonzero(fractional | at_zero)
    evidence = (
        f"{fractional.sum()} of {len(corners)} boxes have decimals, {at_zero.sum()} begin at 0, "
        f"{at_one.sum()} begin at 1"
    )
    findings.add(
        "box_continuous" if is_continuous else "box_one_based",
        contradicting,
        lambda i: f"{source}: box {' '.join(f'{value:g}' for value in corners[i])} ({evidence})",
    )
    return not is_continuous


@dataclass(frozen=True, slots=True)
class _Object:
    """An <object> as written. `error` is the problem of a malformed object, otherwise empty."""

    name: str = ""
    corners: tuple[float, ...] = ()
    is_ignored: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class _File:
    """An XML file.

    Attributes:
        image: the text of <filename>.
        width: the width of <size>, or None where <size> has no usable number.
        height: the height of <size>, or None where <size> has no usable number.
        is_from_1: whether the file states that its coordinates count from 1.
        error: the problem of an unusable file, otherwise empty.
    """

    path: Path
    image: str = ""
    width: int | None = None
    height: int | None = None
    is_from_1: bool = False
    objects: tuple[_Object, ...] = ()
    tags: frozenset[str] = frozenset()
    error: str = ""


class _TreeBuilder(ElementTree.TreeBuilder):
    """A tree builder that refuses a document type, whose entities can expand to gigabytes."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise ElementTree.ParseError("the file declares a DOCTYPE")


def _read_file(folder: Path, stem: str, known: dict[str, str]) -> _File:
    path = folder / known.get(stem, f"{stem}.xml")
    if stem not in known:
        return _File(path, error="the file does not exist")
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_TreeBuilder()))
    except OSError as error:
        return _File(path, error=f"cannot read the file ({error.strerror})")
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: an unknown encoding
        return _File(path, error=f"the file is not valid XML ({error})")
    if root.tag != "annotation":  # for example the format of CVAT, or a namespace
        return _File(path, error=f"the root element is <{root.tag}>, not <annotation> as in Pascal VOC")
    elements = root.findall("object")
    width, height = (as_integer(root.findtext(f"size/{side}")) for side in ("width", "height"))
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


def _match_image(file: _File, stem: str, images: Folder) -> tuple[str, list[str]]:
    """Return the name of the image of an XML file, and the names of other images that match.

    An image with the stem of the file has priority over another image that <filename> names.
    """
    same = images.images_with_stem(stem)
    named = _find_named(file.image, os.path.dirname(stem), images)
    if named is not None and (named in same or not same):
        return named, []
    if not same:
        return file.image or stem, []
    return same[0], [name for name in (*same[1:], named) if name]


def _find_named(written: str, folder: str, images: Folder) -> str | None:
    """Return the image that <filename> means in an XML file of `folder`, or None.

    The function tries the path, the name, and the name without a suffix.
    """
    base = written.rpartition("/")[2]
    match = next((name for text in (written, base) if text and (name := images.find(text))), None)
    if match or not base:
        return match
    is_bare = suffix(base) not in SUFFIXES
    same = images.images_with_stem(os.path.join(folder, base if is_bare else os.path.splitext(base)[0]))
    same = [name for name in same if is_bare or os.path.basename(name).lower() == base.lower()]
    return same[0] if len(same) == 1 else None


def _box(corners: tuple[float, ...], one_based: bool) -> list[float]:
    """Convert xmin, ymin, xmax, ymax as written to (x, y, w, h)."""
    x1, y1, x2, y2 = corners
    first = 1.0 if one_based else 0.0
    width, height = (0.0 if low == high else high - low + first for low, high in ((x1, x2), (y1, y2)))
    return [x1 - first, y1 - first, width, height]


def _read_split(split: Path, known: dict[str, str]) -> list[str]:
    """Return the stem on each line of a split.

    A line may have a second column of -1, 0 or 1 (as in the lists that VOC has for each class), a suffix, or the path
    of the image. A line that matches no XML file, or several XML files, is returned unchanged.
    """
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
        raise UserError(f"{split}: the split is empty", "write an image id on each line")
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise UserError(f"{split}: '{twice}' occurs twice", "remove one of the lines")
    return stems
