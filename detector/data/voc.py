"""Pascal VOC annotations: a folder of XML files, one an image."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree

from detector.data.coco import parse_coco
from detector.data.dataset import DetectionDataset
from detector.data.findings import Findings
from detector.data.images import SUFFIXES
from detector.errors import UserError
from detector.registry import DATASETS


@DATASETS.register("voc")
class VocDataset(DetectionDataset):
    """Pascal VOC XML files and their images.

    classes: the class names in label order; None takes the names in the split's files, sorted. split: a text file with
    one image id (an XML's stem) a line, as in ImageSets/Main; None takes every XML, sorted. one_based: coordinates
    are VOC's, whole pixels counted from 1 with the last one included, so that xmin..xmax covers [xmin - 1, xmax];
    false takes them as continuous. Either way a box with xmin = xmax or ymin = ymax as written is the slip of a single
    click, not an object of one pixel. `difficult` objects are crowds.
    Image ids count from 1 in the split's order, category ids from 1 in label order. What is wrong with single files or
    boxes goes to `findings`.
    Raises UserError for a missing folder or split, and where no image is there.
    """

    def __init__(
        self,
        classes: Sequence[str] | None = None,
        findings: Findings | None = None,
        *,
        images: Path,
        annotations: Path,
        split: Path | None = None,
        one_based: bool = True,
    ):
        findings = findings or Findings()
        files = _split_files(annotations, split)
        entries, objects, wrong, malformed = [], [], [], []
        for image_id, file in enumerate(files, 1):
            try:
                root = _parse_xml(file)
                entries.append({"id": image_id, **_image(root, file, images)})
            except _MalformedError as error:
                wrong.append(f"{file}: {error}")
                continue
            for number, element in enumerate(root.findall("object"), 1):
                known = {"id": len(objects) + 1, "image_id": image_id, "where": f"{file}: object {number}"}
                try:
                    objects.append(known | _object(element, one_based))
                except _MalformedError as error:
                    malformed.append(f"{file}: object {number}: {error}")
        findings.add("annotation_file", range(len(wrong)), wrong.__getitem__)
        findings.add("object_malformed", range(len(malformed)), malformed.__getitem__)
        if not entries:
            raise UserError(f"{annotations}: none of its files can be used ({wrong[0]}); check the folders")

        names = list(classes or ())
        names += sorted({found["name"] for found in objects} - set(names))
        if not names:
            raise UserError(f"{annotations}: none of its files has an object to learn from; check the folder")
        category_ids = {name: index for index, name in enumerate(names, 1)}
        dictionary = {
            "images": entries,
            "annotations": [{**found, "category_id": category_ids[found["name"]]} for found in objects],
            "categories": [{"id": index, "name": name} for name, index in category_ids.items()],
        }
        super().__init__(*parse_coco(dictionary, annotations, images, classes, findings))


class _MalformedError(Exception):
    """What is wrong with one file or object."""


class _TreeBuilder(ElementTree.TreeBuilder):
    """Refuses a document type: annotations need none, and its entities can expand to gigabytes."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise ElementTree.ParseError("it declares a DOCTYPE")


def _parse_xml(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(file.read_bytes(), ElementTree.XMLParser(target=_TreeBuilder()))
    except OSError as error:
        raise _MalformedError(f"cannot be read ({error.strerror})") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: an encoding it cannot read
        raise _MalformedError(f"not a valid annotation file ({error})") from None


def _split_files(annotations: Path, split: Path | None) -> list[Path]:
    if not annotations.is_dir():
        raise UserError(f"{annotations}: no such folder of VOC annotations; check the path")
    if split is None:
        files = sorted(annotations.glob("*.xml"))
        if not files:
            raise UserError(f"{annotations}: the folder holds no .xml file; check the path")
        return files
    try:
        names = [line.strip() for line in split.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{split}: cannot read the split ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{split}: the split is no UTF-8 text; give a file with one image id a line") from None
    if not names:
        raise UserError(f"{split}: the split is empty; write one image id a line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{split}: '{twice}' occurs twice; remove one of the lines")
    return [annotations / f"{name}.xml" for name in names]


def _image(root: ElementTree.Element, file: Path, images: Path) -> dict[str, Any]:
    """A COCO image entry. The picture is the one that the XML names, else the one with the XML's own stem; where none
    is there, the name as written."""
    written = Path((root.findtext("filename") or "").strip()).name
    candidates = [written, *(file.stem + suffix for suffix in SUFFIXES)]
    file_name = next((name for name in candidates if os.path.isfile(images / name)), written or file.stem)
    width, height = (int(_number(root, f"size/{side}")) for side in ("width", "height"))
    return {"file_name": file_name, "width": width, "height": height}


def _object(element: ElementTree.Element, one_based: bool) -> dict[str, Any]:
    """Name, crowd flag and COCO box (x, y, w, h) of one <object>."""
    name = (element.findtext("name") or "").strip()
    if not name:
        raise _MalformedError("<name> is missing")
    x1, y1, x2, y2 = (_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    first = 1.0 if one_based else 0.0
    width, height = (0.0 if low == high else high - low + first for low, high in ((x1, x2), (y1, y2)))
    difficult = (element.findtext("difficult") or "").strip() == "1"
    box = [x1 - first, y1 - first, width, height]
    written = f"box {x1:g} {y1:g} {x2:g} {y2:g} (xmin, ymin, xmax, ymax)"
    return {"name": name, "iscrowd": int(difficult), "area": None, "bbox": box, "written": written}


def _number(element: ElementTree.Element, tag: str) -> float:
    text = element.findtext(tag)
    if text is None:
        raise _MalformedError(f"<{tag}> is missing")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _MalformedError(f"<{tag}> is {text!r}, not a finite number")
    return value
