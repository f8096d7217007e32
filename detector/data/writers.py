"""Data sets in the three formats that `coco.py`, `voc.py` and `yolo.py` read."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import yaml

from detector.data.dataset import DetectionDataset, Record
from detector.data.images import read_header
from detector.errors import UserError

SLIVER = 1e-3  # pixels


def write_coco(splits: dict[str, DetectionDataset], folder: Path) -> dict[str, dict]:
    """annotations/instances_<split>.json and images under <split>/. Image and category ids stay."""
    (folder / "annotations").mkdir(parents=True)
    specs = {}
    for split, dataset in splits.items():
        file = f"annotations/instances_{split}.json"
        (folder / file).write_text(json.dumps(dataset.ground_truth()), encoding="utf-8")
        specs[split] = {"type": "coco", "images": split, "annotations": file}
    return specs


def write_voc(splits: dict[str, DetectionDataset], folder: Path) -> dict[str, dict]:
    """Annotations/*.xml, ImageSets/Main/<split>.txt and images under JPEGImages/. Coordinates are counted from 1, with
    decimals; crowds are `difficult`."""
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
    """data.yaml, labels/<split>/*.txt and images under images/<split>/; crowds are left out."""
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
    content = {"path": ".", **{split: f"images/{split}" for split in splits}, "names": names}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return specs


# of each format: its writer, and the folder of a split's images
WRITERS: dict[str, tuple[Callable[[dict[str, DetectionDataset], Path], dict[str, dict]], str]] = {
    "coco": (write_coco, "{split}"),
    "voc": (write_voc, "JPEGImages"),
    "yolo": (write_yolo, "images/{split}"),
}


def convert(splits: dict[str, DetectionDataset], target: str, folder: Path, *, link: bool) -> dict[str, dict]:
    """Write the data sets of each split and their images into a new folder; what to give as `data.<split>` to read them
    again. `link`: images become hard links, which take no space, where the file system can.

    An image whose name another has already gets a number. Raises UserError, with nothing written, where `folder` is not
    empty, or where an image marked as turned (EXIF) would come away from its boxes: readers of YOLO turn it, those of
    the other formats do not."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--out {folder}: not empty; choose a new folder")
    for dataset in splits.values():
        for record in dataset.records:
            _refuse_turned(record, target)
    write, images = WRITERS[target]
    renamed = _with_unique_names(splits)
    specs = write(renamed, folder)
    for split, dataset in splits.items():
        place = folder / images.format(split=split)
        place.mkdir(parents=True, exist_ok=True)
        for old, new in zip(dataset.records, renamed[split].records, strict=True):
            _put(old.path.resolve(), place / new.path.name, link)
    return specs


def what_is_lost(splits: dict[str, DetectionDataset], target: str) -> list[str]:
    """What of these data sets the target format has no place for, in words."""
    records = [record for dataset in splits.values() for record in dataset.records]
    crowds = sum(int(record.crowd.sum()) for record in records)
    areas = sum(int((np.abs(r.area - (r.boxes[:, 2:] - r.boxes[:, :2]).prod(axis=1)) > 1).sum()) for r in records)
    ids = any(r.image_id != i for d in splits.values() for i, r in enumerate(d.records, 1))
    first = next(iter(splits.values()))
    categories, unseen = first.category_ids, int((first.class_counts() == 0).sum())
    lost = {
        f"{crowds} crowd regions: left out": target == "yolo" and crowds,
        f"{areas} areas of segments: their box's from now on": target != "coco" and areas,
        f"{unseen} classes without objects: unknown to it": target == "voc" and unseen,
        "image ids: counted from 1": target != "coco" and ids,
        "category ids: counted from 1": target != "coco" and categories != tuple(range(1, len(categories) + 1)),
    }
    return [text for text, is_lost in lost.items() if is_lost]


def format_line(label: int, box_xyxy: np.ndarray, width: int, height: int) -> str:
    """A line of YOLO's labels: `class cx cy w h`, in fractions of the image."""
    x1, y1, x2, y2 = box_xyxy.astype(np.float64) / [width, height, width, height]
    return f"{label} {(x1 + x2) / 2:.10g} {(y1 + y2) / 2:.10g} {x2 - x1:.10g} {y2 - y1:.10g}"


def _with_unique_names(splits: dict[str, DetectionDataset]) -> dict[str, DetectionDataset]:
    """Stems that no other image has, in any split: annotations are found by them."""
    taken: set[str] = set()

    def rename(record: Record) -> Record:
        stem, count = record.path.stem, 1
        while stem in taken:
            count += 1
            stem = f"{record.path.stem}_{count}"
        taken.add(stem)
        return replace(record, path=record.path.with_name(stem + record.path.suffix))

    return {
        split: DetectionDataset([rename(r) for r in dataset.records], dataset.class_names, dataset.category_ids)
        for split, dataset in splits.items()
    }


def _voc_tree(record: Record, class_names: tuple[str, ...]) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = record.path.name
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
            if low + 1 == high:  # would read as a click without extent
                low -= SLIVER
            ElementTree.SubElement(box, f"{axis}min").text = f"{low + 1:.10g}"
            ElementTree.SubElement(box, f"{axis}max").text = f"{high:.10g}"
    return root


def _refuse_turned(record: Record, target: str) -> None:
    if record.upright == (target == "yolo"):
        return
    header = read_header(record.path)
    if header.orientation != 1 and (record.width, record.height) == (header.width, header.height):
        way = "shown" if record.upright else "stored"
        raise UserError(
            f"{record.path}: marked as turned (EXIF {header.orientation}) and annotated as {way}; readers of {target} "
            "would take it the other way, and boxes would miss their objects: store it upright first"
        )


def _put(source: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system: a copy does as well
            pass
    shutil.copyfile(source, target)
