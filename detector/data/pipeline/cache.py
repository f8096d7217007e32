"""A cache of decoded and resized images, so that all epochs, workers and processes decode each image only once."""

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
    """A data set whose images are resized to their `target_size` and stored as files.

    A file is the NumPy array of the resized image, 3 bytes per pixel. Its name is a hash of the path, file size and
    modification time of the image, and of all values that determine the resized pixels. A changed image is therefore
    decoded again. All workers share the files in the page cache of the operating system. A folder in memory (/dev/shm)
    holds all files in memory.

    Args:
        dataset: the data set.
        folder: the folder of the files, which is created if it does not exist.
        short_side: the shorter side of the resized images in pixels.
        long_side: the maximum of the longer side in pixels.

    Raises:
        UserError: a sample is read, and its image cannot be read or its file cannot be written.
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
            return super().__getitem__(index)  # raises the error of the missing image
        annotated = f"{record.width} {record.height} {record.upright} {self.bits if record.is_deep else 8}"
        key = f"{record.path.resolve()} {status.st_size} {status.st_mtime_ns} {annotated} {height} {width}"
        file = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
        image = _load(file, (height, width, 3))
        if image is not None:
            boxes = resize_boxes(record.boxes, (record.height, record.width), (height, width))
            return make_sample(replace(record, boxes=boxes), image, (record.height, record.width))
        sample = resize(super().__getitem__(index), height, width)
        content = io.BytesIO()  # NumPy ignores a full disk when it writes to a file
        np.save(content, sample.image)
        try:
            write_bytes(file, content.getbuffer())
        except OSError as error:
            raise UserError(
                f"data.cache: cannot write to {self.folder} ({error.strerror or error})",
                "free space there, or set data.cache=null",
            ) from None
        return sample


def _load(file: Path, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Read a stored image, or return None for a missing file or a file that is truncated after a crash."""
    try:
        image = np.load(file)
    except (OSError, ValueError, EOFError):
        return None
    return image if image.shape == shape and image.dtype == np.uint8 else None
