"""Data sets, and the way from their files to batches."""

from detector.core.registry import DATASETS, IMAGE_SAMPLERS
from detector.data import formats as _formats  # noqa: F401  (registers the data sets)
from detector.data.dataset import DetectionDataset
from detector.data.pipeline import samplers as _samplers  # noqa: F401  (registers the image samplers)

__all__ = ["DATASETS", "IMAGE_SAMPLERS", "DetectionDataset"]
