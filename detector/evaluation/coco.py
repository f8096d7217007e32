"""COCO box metrics, computed by hotcoco (fast) or pycocotools (the original); both give the same digits."""

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.core.errors import UserError
from detector.core.structures import Detections

BACKENDS = {"hotcoco": (hotcoco.COCO, hotcoco.COCOeval), "pycocotools": (COCO, COCOeval)}

# Positions along the axes of the tools' precision (T, R, K, A, M) and recall (T, K, A, M) arrays: T thresholds of the
# IoU 0.5, 0.55, ..., 0.95; R recall levels; K categories by id; A areas; M limits on the detections an image.
_IOU_50, _IOU_75 = 0, 5
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


def coco_metrics(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    backend: str = "hotcoco",
    max_detections: int = 100,
) -> dict[str, float | dict]:
    """AP and AR of boxes as COCO defines them, fractions in 0..1; NaN where there is no ground truth to find.

    ground_truth: a COCO dictionary; detections: COCO results (image_id, category_id, bbox as x, y, w, h, score).
    Neither is modified. Gives AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl and per_class,
    {class name: {AP, AP50}}. With another max_detections (above 10) it is the limit of every metric but AR1 and AR10,
    and AR100's key has that number.
    Raises UserError for a detection that is not finite (see `check_finite`), and ValueError for one whose image or
    category the ground truth lacks.
    """
    if max_detections <= 10:
        raise ValueError(f"max_detections is {max_detections}; it must be above 10")
    _check_detections(ground_truth, detections)
    precision, recall = _evaluate(ground_truth, detections, backend, max_detections)

    metrics: dict[str, float | dict] = {
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
    metrics["per_class"] = {
        category["name"]: {
            "AP": _mean(precision[:, :, k, _ALL, -1]),
            "AP50": _mean(precision[_IOU_50, :, k, _ALL, -1]),
        }
        for k, category in enumerate(categories)
    }
    return metrics


def to_coco_results(image_id: int, detections: Detections, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One image's detections as COCO results: boxes as (x, y, w, h), labels as the data set's ids, nothing rounded.
    Raises UserError (see `check_finite`)."""
    corners, ends = detections.boxes.double().split(2, dim=1)
    boxes = torch.cat((corners, ends - corners), dim=1)
    results = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(
            boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
        )
    ]
    check_finite(results)
    return results


def check_finite(detections: Sequence[dict[str, Any]]) -> None:
    """Raises UserError for a box or a score that is NaN or infinite (both tools would count a NaN box as a true
    positive), and for a box with a negative side."""
    for detection in detections:
        box, score = detection["bbox"], detection["score"]
        if not all(map(math.isfinite, (*box, score))) or box[2] < 0 or box[3] < 0:
            raise UserError(
                f"image {detection['image_id']}: a detection is not finite or has a negative side (x, y, w, h {box}, "
                f"score {score})",
                "if it is a model's, try train.precision=fp32 or an earlier checkpoint",
            )


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
    """The precision and recall arrays at the limits 1, 10 and max_detections; -1 where there is no ground truth."""
    if backend not in BACKENDS:
        raise ValueError(f"no backend '{backend}'; known: {', '.join(BACKENDS)}")
    make_index, make_evaluation = BACKENDS[backend]
    objects = [
        {key: annotation[key] for key in ("image_id", "category_id", "bbox", "area")}
        | {"iscrowd": annotation.get("iscrowd", 0)}
        for annotation in ground_truth["annotations"]
    ]
    # without names, which need not be UTF-8
    images = [{"id": image["id"], "file_name": ""} for image in ground_truth["images"]]
    categories = [{"id": category["id"], "name": str(category["id"])} for category in ground_truth["categories"]]
    found = [
        {**detection, "area": detection["bbox"][2] * detection["bbox"][3], "iscrowd": 0} for detection in detections
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        indices = []
        for annotations in (objects, found):
            index = make_index()
            # numbered from 1, since pycocotools takes a match with id 0 for none
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
    """The mean over what has ground truth, NaN if nothing has."""
    values = values[values > -1]
    return float(values.mean()) if values.size else math.nan
