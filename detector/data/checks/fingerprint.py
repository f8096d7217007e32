"""The identification of a data set by a hash of its content."""

import hashlib
import os

import numpy as np

from detector.data.dataset import DetectionDataset


def fingerprint(dataset: DetectionDataset) -> dict[str, int | str]:
    """Return the numbers of images and objects, and a SHA-256 checksum of the content of a data set.

    The checksum covers the class names and category ids, and for each image in order the id, file name, size, boxes,
    labels and crowd flags. It does not cover folders, so that a data set in another folder has the same checksum.
    """
    content = hashlib.sha256(repr((dataset.class_names, dataset.category_ids)).encode(errors="surrogateescape"))
    for record in dataset.records:
        header = f"{record.image_id} {record.width} {record.height} {len(record.boxes)} ".encode()
        content.update(header + os.fsencode(record.path.name) + b"\0")
        for values, dtype in ((record.boxes, np.float32), (record.labels, np.int64), (record.crowd, bool)):
            content.update(np.ascontiguousarray(values, dtype).tobytes())
    objects = sum(len(record.boxes) for record in dataset.records)
    return {"images": len(dataset), "objects": objects, "sha256": content.hexdigest()}
