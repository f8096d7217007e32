"""The writers of data sets in the three formats that `coco.py`, `voc.py` and `yolo.py` read."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import yaml

from detector.core.strict_yaml import Dumper
from detector.data.dataset import DetectionDataset, Record
from detector.data.formats.voc import FROM_1

SLIVER = 1e-3  # pixels


def write_coco(splits: dict[str, DetectionDataset], folder: Path) -> dict[str, dict]:
    """Write annotations/instances_<split>.json for images in <split>/. Image and category ids are unchanged.

    Args:
        splits: the data sets, by the name of the split.
        folder: the new folder.

    Returns:
        The value of `data.<split>` that reads each written data set.
    """
    (folder / "annotations").mkdir(parents=True)
    specs = {}
    for split, dataset in splits.items():
        file = f"annotations/instances_{split}.json"
        (folder / file).write_text(json.dumps(dataset.ground_truth()), encoding="utf-8")
        specs[split] = {"type": "coco", "images": split, "annotations": file}
    return specs


def write_voc(splits: dict[str, DetectionDataset], folder: Path) -> dict[str, dict]:
    """Write Annotations/*.xml and ImageSets/Main/<split>.txt for images in JPEGImages/.

    Coordinates count from 1 and have decimals. The element <source> states this for `VocDataset`. A crowd region is
    written as a `difficult` object.

    Args:
        splits: the data sets, by the name of the split.
        folder: the new folder.

    Returns:
        The value of `data.<split>` that reads each written data set.
    """
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    specs = {}
    for split, dataset in splits.items():
        for record in dataset.records:
            tree = ElementTree.ElementTree(_voc_tree(record, dataset.class_names))
            ElementTree.indent(tree)
            tree.write(folder / "Annotations" / f"{record.path.stem}.xml", encoding="utf-8")
        file = f"ImageSets/Main/{split}.txt"
        (folder / file).write_text("".join(f"{record.path.stem}\n" for record in dataset.records), encoding="utf-8")
        specs[split] = {"type": "voc", "images": "JPEGImages", "annotations": "Annotations", "split": file}
    return specs


def write_yolo(splits: dict[str, DetectionDataset], folder: Path) -> dict[str, dict]:
    """Write data.yaml and labels/<split>/*.txt for images in images/<split>/. Crowds are left out.

    data.yaml has no `path`, so that readers resolve its entries relative to its folder and not to the working folder.

    Args:
        splits: the data sets, by the name of the split.
        folder: the new folder.

    Returns:
        The value of `data.<split>` that reads each written data set.
    """
    specs = {}
    for split, dataset in splits.items():
        (folder / "labels" / split).mkdir(parents=True)
        for record in dataset.records:
            lines = [
                format_line(label, box, record.width, record.height)
                for label, box, crowd in zip(record.labels, record.boxes, record.crowd, strict=True)
                if not crowd
            ]
            text = "".join(f"{line}\n" for line in lines)
            (folder / "labels" / split / f"{record.path.stem}.txt").write_text(text, encoding="utf-8")
        specs[split] = {"type": "yolo", "annotations": "data.yaml", "split": split}
    names = dict(enumerate(next(iter(splits.values())).class_names))
    content = {**{split: f"images/{split}" for split in splits}, "names": names}
    text = yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return specs


# the writer of each format, and the folder of the images of a split
WRITERS: dict[str, tuple[Callable[[dict[str, DetectionDataset], Path], dict[str, dict]], str]] = {
    "coco": (write_coco, "{split}"),
    "voc": (write_voc, "JPEGImages"),
    "yolo": (write_yolo, "images/{split}"),
}


def format_line(label: int, box_xyxy: np.ndarray, width: int, height: int) -> str:
    """Return a line of YOLO labels: `class cx cy w h`, in fractions of the image.

    Args:
        label: the class.
        box_xyxy: (4,) in pixels.
        width: the width of the image in pixels.
        height: the height of the image in pixels.
    """
    x1, y1, x2, y2 = box_xyxy.astype(np.float64) / [width, height, width, height]
    return f"{label} {(x1 + x2) / 2:.10g} {(y1 + y2) / 2:.10g} {x2 - x1:.10g} {y2 - y1:.10g}"


def _voc_tree(record: Record, class_names: tuple[str, ...]) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = record.path.name
    ElementTree.SubElement(ElementTree.SubElement(root, "source"), "coordinates").text = FROM_1
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", record.width), ("height", record.height), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    for (x1, y1, x2, y2), label, crowd in zip(
        record.boxes.astype(np.float64), record.labels, record.crowd, strict=True
    ):
        element = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(element, "name").text = class_names[label]
        ElementTree.SubElement(element, "difficult").text = str(int(crowd))
        box = ElementTree.SubElement(element, "bndbox")
        for axis, low, high in (("x", x1, x2), ("y", y1, y2)):
            if high <= low + 1:  # a reader would treat the box as a single click, or as swapped corners
                high = low + 1 + SLIVER
            ElementTree.SubElement(box, f"{axis}min").text = f"{low + 1:.10g}"
            ElementTree.SubElement(box, f"{axis}max").text = f"{high:.10g}"
    return root
