"""Data sets, and the way from their files to batches."""

from detector.data import coco, synthetic, voc  # noqa: F401  (registers the data sets)
from detector.data.dataset import DetectionDataset
from detector.registry import DATASETS

__all__ = ["DATASETS", "DetectionDataset"]
