"""A function that reads a data set that `convert` has written."""

from pathlib import Path

from detector.data.checks.findings import Findings
from detector.data.dataset import DATASETS, DetectionDataset

FORMATS = ("coco", "voc", "yolo")


def read(spec: dict, folder: Path, classes: tuple[str, ...] | None) -> DetectionDataset:
    """Return the data set of a spec whose paths are relative to a folder."""
    paths = {k: folder / v for k, v in spec.items() if k in ("images", "annotations")}
    paths |= {"split": folder / spec["split"]} if spec["type"] == "voc" else {}
    parameters = {k: v for k, v in spec.items() if k != "type"}
    parameters |= {k: str(v) for k, v in paths.items()}
    return DATASETS.build(spec["type"], classes, Findings(), **parameters)
