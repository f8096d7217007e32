"""Data sets, and the way from their files to batches."""

from detector.data import coco, samplers, synthetic, voc, yolo  # noqa: F401  (registers the data sets and samplers)
from detector.data.dataset import DetectionDataset
from detector.registry import DATASETS, IMAGE_SAMPLERS

__all__ = ["DATASETS", "IMAGE_SAMPLERS", "DetectionDataset"]
