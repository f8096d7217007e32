"""What a data set's records are in for, whatever its format: the cheap part of the data check, at every start."""

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
    """Add classes without objects, images without objects, images with too many, and boxes too small to be matched.

    Args:
        dataset: the data set.
        findings: takes what is found.
        max_objects: how many objects of an image an evaluation counts.
        anchor_sides: (N, 2) width and height in pixels, at the size the model sees.
        matched_iou: a box is too small if it is smaller than every anchor and overlaps none by this IoU even where
            their centres meet.
        scale: by how much an image is scaled to the size the model sees.
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
        lambda i: f"{records[i].path.name}: {num_objects[i]} objects, evaluation.max_detections is {max_objects}",
    )
    owner = np.repeat(np.arange(len(records)), np.array([len(r.boxes) for r in records], dtype=np.int64))
    scales = np.array([scale(record) for record in records], dtype=np.float64)[owner]
    boxes = np.concatenate([np.empty((0, 4), np.float32), *(r.boxes for r in records)])
    sides = (boxes[:, 2:] - boxes[:, :2]) * scales[:, None]
    small = sides.prod(axis=1) < anchor_sides.prod(axis=1).min()
    sides = sides[small]
    common = np.minimum(sides[:, None], anchor_sides).prod(axis=2)
    union = sides.prod(axis=1)[:, None] + anchor_sides.prod(axis=1) - common
    which = np.flatnonzero(small)[(common / union).max(axis=1) < matched_iou]
    findings.add(
        "box_small",
        which,
        lambda i: f"{records[owner[i]].path.name}: {_size(boxes[i])} pixels, {_size(boxes[i] * scales[i])} in training",
    )


def _size(box: np.ndarray) -> str:
    return f"{box[2] - box[0]:.3g}x{box[3] - box[1]:.3g}"
