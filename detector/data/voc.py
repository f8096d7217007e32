"""Pascal VOC annotations: a folder of XML files, one an image."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn
from xml.etree import ElementTree

from detector.data.coco import parse_coco
from detector.data.dataset import DetectionDataset
from detector.data.images import SUFFIXES
from detector.errors import UserError
from detector.registry import DATASETS


@DATASETS.register("voc")
class VocDataset(DetectionDataset):
    """Pascal VOC XML files and their images.

    classes: the class names in label order; None takes the names in the split's files, sorted. split: a text file with
    one image id (an XML's stem) a line, as in ImageSets/Main; None takes every XML, sorted. one_based: coordinates
    are VOC's, whole pixels counted from 1 with the last one included, so that xmin..xmax covers [xmin - 1, xmax];
    false takes them as continuous. Either way a box needs xmin < xmax and ymin < ymax as written: one drawn with a
    single click is a slip, not an object of one pixel. invalid: what to do with a box that has no area inside its
    image; "skip" leaves it out and counts it in `num_skipped`. `difficult` objects are crowds.
    Image ids count from 1 in the split's order, category ids from 1 in label order.
    Raises UserError for a missing or malformed file and for a missing image.
    """

    def __init__(
        self,
        classes: Sequence[str] | None = None,
        *,
        images: Path,
        annotations: Path,
        split: Path | None = None,
        one_based: bool = True,
        invalid: Literal["error", "skip"] = "error",
    ):
        files = _split_files(annotations, split)
        roots = [_parse_xml(file) for file in files]
        entries = [
            _image(root, file, images, image_id)
            for image_id, (root, file) in enumerate(zip(roots, files, strict=True), 1)
        ]
        objects = [
            {"id": number, "image_id": entry["id"], **_object(element, file, one_based)}
            for entry, root, file in zip(entries, roots, files, strict=True)
            for number, element in enumerate(root.findall("object"), 1)
        ]
        _check_images_differ(entries, files)

        names = list(classes or ())
        names += sorted({found["name"] for found in objects} - set(names))
        category_ids = {name: index for index, name in enumerate(names, 1)}
        dictionary = {
            "images": entries,
            "annotations": [{**found, "category_id": category_ids[found["name"]]} for found in objects],
            "categories": [{"id": index, "name": name} for name, index in category_ids.items()],
        }
        parsed = parse_coco(dictionary, annotations, images, classes, invalid)
        super().__init__(parsed.records, parsed.class_names, parsed.category_ids)
        self.num_skipped = parsed.num_skipped


class _TreeBuilder(ElementTree.TreeBuilder):
    """Refuses a document type: annotations need none, and its entities can expand to gigabytes."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise ElementTree.ParseError("it declares a DOCTYPE")


def _parse_xml(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(file.read_bytes(), ElementTree.XMLParser(target=_TreeBuilder()))
    except OSError as error:
        raise UserError(f"{file}: cannot read the annotations ({error.strerror}); check the path") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: an encoding it cannot read
        raise UserError(f"{file}: not a valid annotation file ({error}); correct or replace it") from None


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


def _image(root: ElementTree.Element, file: Path, images: Path, image_id: int) -> dict[str, Any]:
    """A COCO image entry. The picture is the one that the XML names, else the one with the XML's own stem."""
    written = Path((root.findtext("filename") or "").strip()).name
    candidates = [written, *(file.stem + suffix for suffix in SUFFIXES)]
    file_name = next((name for name in candidates if (images / name).is_file()), None)
    if file_name is None:
        raise UserError(
            f"{file}: neither its filename '{written}' nor '{file.stem}.*' is in {images}; check the folder"
        )
    width, height = (int(_number(root, f"size/{side}", file)) for side in ("width", "height"))
    return {"id": image_id, "file_name": file_name, "width": width, "height": height}


def _check_images_differ(entries: list[dict[str, Any]], files: list[Path]) -> None:
    owner: dict[str, Path] = {}
    for entry, file in zip(entries, files, strict=True):
        other = owner.setdefault(entry["file_name"], file)
        if other is not file:
            raise UserError(
                f"{file}: its image '{entry['file_name']}' is also that of {other.name}; correct <filename>"
            )


def _object(element: ElementTree.Element, file: Path, one_based: bool) -> dict[str, Any]:
    """Name, crowd flag and COCO box (x, y, w, h) of one <object>; no extent along a side that is not positive."""
    name = (element.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{file}: an <object> has no <name>; write its class")
    x1, y1, x2, y2 = (_number(element, f"bndbox/{side}", file) for side in ("xmin", "ymin", "xmax", "ymax"))
    first = 1.0 if one_based else 0.0
    width = x2 - x1 + first if x2 > x1 else 0.0
    height = y2 - y1 + first if y2 > y1 else 0.0
    difficult = (element.findtext("difficult") or "").strip() == "1"
    return {"name": name, "iscrowd": int(difficult), "bbox": [x1 - first, y1 - first, width, height]}


def _number(element: ElementTree.Element, tag: str, file: Path) -> float:
    text = element.findtext(tag)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{file}: <{tag}> is {text!r}; it must be a finite number")
    return value
