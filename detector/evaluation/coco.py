"""COCO box metrics, computed by hotcoco (fast) or pycocotools (the original). Both give equal numbers."""

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.evaluation.coco_results import check_finite
from detector.evaluation.metrics import ClassMetrics, Metrics

BACKENDS: dict[str, tuple[Any, Any]] = {"hotcoco": (hotcoco.COCO, hotcoco.COCOeval), "pycocotools": (COCO, COCOeval)}

# Indices into the libraries' arrays of precision (T, R, K, A, M) and recall (T, K, A, M): T thresholds of the IoU 0.5,
# 0.55, ..., 0.95; R recall levels; K categories by id; A areas; M limits on the detections of an image.
_IOU_50, _IOU_75 = 0, 5
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


def coco_metrics(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    backend: str = "hotcoco",
    max_detections: int = 100,
) -> Metrics:
    """Compute AP and AR of boxes as COCO defines them.

    The inputs are not modified.

    Args:
        ground_truth: a COCO dictionary (images, annotations, categories).
        detections: COCO results (image_id, category_id, bbox as x, y, width, height in pixels, score).
        backend: the name of the library that computes the metrics, a key of `BACKENDS`.
        max_detections: the number of detections of an image that count, the best first. It must be above 10. It does
            not apply to AR1 and AR10. The name of AR100 changes to this number.

    Returns:
        The metrics, without settings.

    Raises:
        UserError: a detection is not finite (see `check_finite`).
        ValueError: the ground truth lacks the image or the category of a detection, `max_detections` is 10 or less, or
            `backend` is unknown.
    """
    if max_detections <= 10:
        raise ValueError(f"max_detections is {max_detections}, but must be above 10")
    _check_detections(ground_truth, detections)
    precision, recall = _evaluate(ground_truth, detections, backend, max_detections)
    numbers = {
        "AP": _mean(precision[:, :, :, _ALL, -1]),
        "AP50": _mean(precision[_IOU_50, :, :, _ALL, -1]),
        "AP75": _mean(precision[_IOU_75, :, :, _ALL, -1]),
        "APs": _mean(precision[:, :, :, _SMALL, -1]),
        "APm": _mean(precision[:, :, :, _MEDIUM, -1]),
        "APl": _mean(precision[:, :, :, _LARGE, -1]),
        "AR1": _mean(recall[:, :, _ALL, 0]),
        "AR10": _mean(recall[:, :, _ALL, 1]),
        f"AR{max_detections}": _mean(recall[:, :, _ALL, 2]),
        "ARs": _mean(recall[:, :, _SMALL, -1]),
        "ARm": _mean(recall[:, :, _MEDIUM, -1]),
        "ARl": _mean(recall[:, :, _LARGE, -1]),
    }
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    per_class = {
        category["name"]: ClassMetrics(
            AP=_mean(precision[:, :, k, _ALL, -1]), AP50=_mean(precision[_IOU_50, :, k, _ALL, -1])
        )
        for k, category in enumerate(categories)
    }
    return Metrics(numbers=numbers, per_class=per_class)


def _check_detections(ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]]) -> None:
    check_finite(detections)
    image_ids = {image["id"] for image in ground_truth["images"]}
    category_ids = {category["id"] for category in ground_truth["categories"]}
    for detection in detections:
        if detection["image_id"] not in image_ids or detection["category_id"] not in category_ids:
            raise ValueError(f"the ground truth lacks the image or category of a detection: {detection}")


def _evaluate(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], backend: str, max_detections: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the arrays of precision and recall at the limits 1, 10 and max_detections; -1 without ground truth."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend '{backend}'; the backends are {', '.join(BACKENDS)}")
    make_index, make_evaluation = BACKENDS[backend]
    objects = [
        {key: annotation[key] for key in ("image_id", "category_id", "bbox", "area")}
        | {"iscrowd": annotation.get("iscrowd", 0)}
        for annotation in ground_truth["annotations"]
    ]
    # file names are left empty, because they may not be UTF-8
    images = [{"id": image["id"], "file_name": ""} for image in ground_truth["images"]]
    categories = [{"id": category["id"], "name": str(category["id"])} for category in ground_truth["categories"]]
    results = [
        {**detection, "area": detection["bbox"][2] * detection["bbox"][3], "iscrowd": 0} for detection in detections
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        indices = []
        for annotations in (objects, results):
            index = make_index()
            # the ids start at 1, because pycocotools does not count a match with id 0
            numbered = [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)]
            index.dataset = {"images": images, "categories": categories, "annotations": numbered}
            index.createIndex()
            indices.append(index)
        evaluation = make_evaluation(*indices, "bbox")
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that have ground truth; NaN if no value has ground truth."""
    values = values[values > -1]
    return float(values.mean()) if values.size else math.nan
