"""The fast part of the data check, which runs on the records of every data set at every start."""

from collections.abc import Callable

import numpy as np

from detector.data.checks.findings import Findings
from detector.data.dataset import DetectionDataset, Record


def check_records(
    dataset: DetectionDataset,
    findings: Findings,
    *,
    max_objects: int,
    anchor_sides: np.ndarray,
    matched_iou: float,
    scale: Callable[[Record], float],
) -> None:
    """Report classes without objects, images without objects or with too many objects, and boxes that are too small.

    A box is too small if its area is smaller than that of every anchor, and its IoU with each anchor is below
    `matched_iou` even where their centers coincide.

    Args:
        dataset: the data set.
        findings: receives the findings.
        max_objects: the number of objects per image that an evaluation counts.
        anchor_sides: (N, 2) width and height of the anchors in pixels of the resized image.
        matched_iou: the IoU from which an anchor matches a box.
        scale: returns the factor by which an image is resized for the model.
    """
    records = dataset.records
    num_objects = np.array([np.count_nonzero(~record.crowd) for record in records])
    names = [dataset.class_names[k] for k in np.flatnonzero(dataset.class_counts() == 0)]
    findings.add("class_empty", range(len(names)), names.__getitem__)
    findings.add(
        "image_empty", [i for i, r in enumerate(records) if not len(r.boxes)], lambda i: str(records[i].path.name)
    )
    findings.add(
        "image_crowded",
        np.flatnonzero(num_objects > max_objects),
        lambda i: f"{records[i].path.name}: {num_objects[i]} objects; evaluation.max_detections={max_objects}",
    )
    image_of_box = np.repeat(np.arange(len(records)), np.array([len(r.boxes) for r in records], dtype=np.int64))
    scales = np.array([scale(record) for record in records], dtype=np.float64)[image_of_box]
    boxes = np.concatenate([np.empty((0, 4), np.float32), *(r.boxes for r in records)])
    sides = (boxes[:, 2:] - boxes[:, :2]) * scales[:, None]
    is_small = sides.prod(axis=1) < anchor_sides.prod(axis=1).min()
    sides = sides[is_small]
    intersection = np.minimum(sides[:, None], anchor_sides).prod(axis=2)
    union = sides.prod(axis=1)[:, None] + anchor_sides.prod(axis=1) - intersection
    unmatched = np.flatnonzero(is_small)[(intersection / union).max(axis=1) < matched_iou]
    findings.add(
        "box_small",
        unmatched,
        lambda i: (
            f"{records[image_of_box[i]].path.name}: a box of {_size(boxes[i])} pixels, "
            f"resized to {_size(boxes[i] * scales[i])} pixels"
        ),
    )


def _size(box: np.ndarray) -> str:
    return f"{box[2] - box[0]:.3g}x{box[3] - box[1]:.3g}"
