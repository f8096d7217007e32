"""Reads what `convert` has written, as its result says."""

from pathlib import Path

from detector.data.checks.findings import Findings
from detector.data.dataset import DATASETS, DetectionDataset

FORMATS = ("coco", "voc", "yolo")


def read(spec: dict, folder: Path, classes: tuple[str, ...] | None) -> DetectionDataset:
    paths = {k: folder / v for k, v in spec.items() if k in ("images", "annotations")}
    paths |= {"split": folder / spec["split"]} if spec["type"] == "voc" else {}
    rest = {k: v for k, v in spec.items() if k != "type"}
    rest |= {k: str(v) for k, v in paths.items()}
    return DATASETS.build(spec["type"], classes, Findings(), **rest)
