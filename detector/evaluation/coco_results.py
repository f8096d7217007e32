"""Detections in COCO's results format."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from detector.core.errors import UserError
from detector.core.structures import Detections


def to_coco_results(image_id: int, detections: Detections, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Convert the detections of an image to COCO results. The numbers are not rounded.

    Args:
        image_id: the id of the image in the data set.
        detections: the N detections of the image.
        category_ids: the category id of each label in the data set.

    Returns:
        N dictionaries: image_id, category_id, bbox (x, y, width, height in pixels), score.

    Raises:
        UserError: a box or a score is not finite (see `check_finite`).
    """
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
    """Refuse COCO results that an evaluation cannot count.

    pycocotools and hotcoco count a NaN box as a true positive.

    Args:
        detections: COCO results.

    Raises:
        UserError: a box or a score is NaN or infinite, or a box has a negative side.
    """
    for detection in detections:
        box, score = detection["bbox"], detection["score"]
        if not all(map(math.isfinite, (*box, score))) or box[2] < 0 or box[3] < 0:
            raise UserError(
                f"image {detection['image_id']}: a detection has a non-finite value or a negative side (x, y, w, h "
                f"{box}, score {score})",
                "if a model made the detection, use train.precision=fp32 or an earlier checkpoint",
            )
