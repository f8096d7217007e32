"""Identify a data set by a hash of its content."""

import hashlib
import os

import numpy as np

from detector.data.dataset import DetectionDataset


def fingerprint(dataset: DetectionDataset) -> dict[str, int | str]:
    """Numbers of images and objects, and a SHA-256 of every image's id, file name and size, of its boxes, labels and
    crowd marks, in order. Folders do not count: a data set that has moved is the same."""
    content = hashlib.sha256(repr((dataset.class_names, dataset.category_ids)).encode(errors="surrogateescape"))
    for record in dataset.records:
        about = f"{record.image_id} {record.width} {record.height} {len(record.boxes)} ".encode()
        content.update(about + os.fsencode(record.path.name) + b"\0")
        for values, dtype in ((record.boxes, np.float32), (record.labels, np.int64), (record.crowd, bool)):
            content.update(np.ascontiguousarray(values, dtype).tobytes())
    objects = sum(len(record.boxes) for record in dataset.records)
    return {"images": len(dataset), "objects": objects, "sha256": content.hexdigest()}
