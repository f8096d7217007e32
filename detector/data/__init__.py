"""Data sets: annotation formats, checks, and the pipeline from files to batches."""

from detector.data import formats as _formats  # noqa: F401  (registers the data sets)
from detector.data.dataset import DATASETS, DetectionDataset
from detector.data.pipeline import samplers as _samplers  # noqa: F401  (registers the image samplers)
from detector.data.pipeline.samplers import IMAGE_SAMPLERS
from detector.data.pipeline.transforms import TRANSFORMS

__all__ = ["DATASETS", "IMAGE_SAMPLERS", "TRANSFORMS", "DetectionDataset"]
