"""Decoded and resized images kept as files, so that each is decoded once in all epochs, workers and processes."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from detector.core.errors import UserError
from detector.core.files import write_bytes
from detector.core.structures import Sample
from detector.data.dataset import DetectionDataset, make_sample
from detector.data.pipeline.transforms import resize, resize_boxes, target_size


class CachedDataset(DetectionDataset):
    """`dataset` with each image at its `target_size`, kept in a file under `folder`.

    A file is a NumPy array as decoded and resized, 3 bytes a pixel, under a name made of the image's path, its size and
    time of change in the file system, how and at what size it is annotated, and its target size: a changed image is
    decoded anew. What the operating system keeps of them in memory all workers share; a folder in memory (/dev/shm)
    keeps them there.
    Raises UserError where a file cannot be written.
    """

    def __init__(self, dataset: DetectionDataset, folder: Path, short_side: int, long_side: int):
        super().__init__(dataset.records, dataset.class_names, dataset.category_ids, dataset.bits)
        self.folder = folder
        self.short_side = short_side
        self.long_side = long_side
        folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        height, width = target_size(record.height, record.width, self.short_side, self.long_side)
        try:
            status = record.path.stat()
        except OSError:
            return super().__getitem__(index)  # which says what is wrong
        annotated = f"{record.width} {record.height} {record.upright} {self.bits if record.is_deep else 8}"
        key = f"{record.path.resolve()} {status.st_size} {status.st_mtime_ns} {annotated} {height} {width}"
        file = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
        image = _load(file, (height, width, 3))
        if image is not None:
            boxes = resize_boxes(record.boxes, (record.height, record.width), (height, width))
            return make_sample(replace(record, boxes=boxes), image, (record.height, record.width))
        sample = resize(super().__getitem__(index), height, width)
        content = io.BytesIO()  # NumPy, given a file, overlooks a disk that fills up
        np.save(content, sample.image)
        try:
            write_bytes(file, content.getbuffer())
        except OSError as error:
            raise UserError(
                f"data.cache: {self.folder}: {error.strerror or error}", "free space there or set data.cache=null"
            ) from None
        return sample


def _load(file: Path, shape: tuple[int, int, int]) -> np.ndarray | None:
    """None where there is no such file, or one that a crash cut short."""
    try:
        image = np.load(file)
    except (OSError, ValueError, EOFError):
        return None
    return image if image.shape == shape and image.dtype == np.uint8 else None
