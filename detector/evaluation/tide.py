"""The average precision lost to six types of error, and the gain from a correction of each type.

The method is TIDE (Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors"). The numbers
equal the numbers of the `tidecv` package where no two scores are equal. Equal scores keep the order of the images and,
in an image, of the detections. With equal scores the precision depends on this order, in `tidecv` too. `tidecv` sorts
corrected detections differently. With equal scores AP50 is still equal, but the gains may differ (by up to 0.12 for
scores of one decimal).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.1
TYPES = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
RECALLS = np.arange(101) / 100  # as in TIDE; some values of COCO's linspace differ in the last digit


@dataclass(frozen=True, slots=True)
class Matches:
    """The N detections and the M objects (without crowds) of all images, matched at IoU 0.5.

    The detections are in the order of the images and, in an image, of descending scores. A class is given by its index.

    score: (N,) score of each detection.
    label: (N,) class of each detection.
    is_correct: (N,) whether the detection takes an object of its class.
    is_ignored: (N,) whether the detection lies in a crowd region.
    error: (N,) index of the error in TYPES; -1 for a correct detection.
    corrected_label: (N,) class of the object that the detection takes after the correction of its error; -1 for none.
    truth: (M,) class of each object.
    is_found: (M,) whether a correct detection takes the object.
    is_missed: (M,) whether no detection takes the object, even after the correction of its error.
    """

    score: np.ndarray
    label: np.ndarray
    is_correct: np.ndarray
    is_ignored: np.ndarray
    error: np.ndarray
    corrected_label: np.ndarray
    truth: np.ndarray
    is_found: np.ndarray
    is_missed: np.ndarray


def by_image(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Group detections and objects by image.

    Args:
        ground_truth: a COCO dictionary.
        detections: COCO results.

    Returns:
        For each image, six arrays. The first three are the boxes (N, 4) xywh, scores and labels of the detections, in
        descending order of the scores. The others are the boxes (M, 4) xywh, labels and crowd flags of the objects.
    """
    label_of = {category["id"]: k for k, category in enumerate(ground_truth["categories"])}
    detection_rows: dict[Any, list] = {image["id"]: [] for image in ground_truth["images"]}
    object_rows: dict[Any, list] = {image["id"]: [] for image in ground_truth["images"]}
    for item in detections:
        detection_rows[item["image_id"]].append((*item["bbox"], item["score"], label_of[item["category_id"]]))
    for item in ground_truth["annotations"]:
        object_rows[item["image_id"]].append((*item["bbox"], item.get("iscrowd", 0), label_of[item["category_id"]]))
    images = []
    for image in detection_rows:
        d = np.array(detection_rows[image], dtype=np.float64).reshape(-1, 6)
        d = d[np.argsort(-d[:, 4], kind="stable")]
        g = np.array(object_rows[image], dtype=np.float64).reshape(-1, 6)
        images.append((d[:, :4], d[:, 4], d[:, 5].astype(int), g[:, :4], g[:, 5].astype(int), g[:, 4] > 0))
    return images


def match(ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]]) -> Matches:
    """Match detections to objects and find the error of each wrong detection.

    Args:
        ground_truth: a COCO dictionary.
        detections: COCO results.
    """
    columns = zip(*(_match_image(*image) for image in by_image(ground_truth, detections)), strict=True)
    return Matches(*(np.concatenate(column) for column in columns))


def iou_xywh(a: np.ndarray, b: np.ndarray, *, of_first: bool = False) -> np.ndarray:
    """Return the intersection over union of each pair of boxes, (N, M).

    Args:
        a: (N, 4) xywh.
        b: (M, 4) xywh.
        of_first: divide by the area of the box in `a` instead of the union (COCO's measure for crowds).
    """
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2)
    area_a, area_b = a[:, 2:].prod(axis=1)[:, None], b[:, 2:].prod(axis=1)[None]
    total = area_a + 0 * area_b if of_first else area_a + area_b - shared
    return np.divide(shared, total, out=np.zeros_like(shared), where=total > 0)


def _match_image(boxes, scores, labels, objects, truth, crowd) -> tuple[np.ndarray, ...]:
    """Return the columns of `Matches` for an image. The arguments are the arrays of `by_image`."""
    regions, region_labels = objects[crowd], truth[crowd]
    objects, truth = objects[~crowd], truth[~crowd]
    n, m = len(boxes), len(objects)
    iou = iou_xywh(boxes, objects)
    is_same = labels[:, None] == truth[None]
    is_correct, is_found = np.zeros(n, bool), np.zeros(m, bool)
    for i in range(n if m else 0):
        free = np.where(is_same[i] & ~is_found, iou[i], 0)
        j = free.argmax()
        if free[j] >= FOREGROUND_IOU:
            is_correct[i] = is_found[j] = True
    is_inside = (iou_xywh(boxes, regions, of_first=True) > FOREGROUND_IOU) & (labels[:, None] == region_labels[None])
    is_ignored = ~is_correct & is_inside.any(axis=1)

    error, corrected_label = np.full(n, -1), np.full(n, -1)
    is_reachable = np.zeros(m, bool)
    for i in np.flatnonzero(~is_correct):
        name, j = _error(iou[i], is_same[i], is_found) if m else ("Bkg", None)
        error[i] = TYPES.index(name)
        if j is not None and not is_found[j]:
            if not is_reachable[j]:  # only the best detection of an object is corrected
                corrected_label[i] = truth[j]
            is_reachable[j] = True
    return scores, labels, is_correct, is_ignored, error, corrected_label, truth, is_found, ~is_found & ~is_reachable


def _error(iou: np.ndarray, is_same: np.ndarray, is_found: np.ndarray) -> tuple[str, int | None]:
    """Return the type of a wrong detection's error, and the index of the object that a correction would match."""
    same_class, other_class = np.where(is_same, iou, 0), np.where(is_same, 0, iou)
    if BACKGROUND_IOU <= same_class.max() <= FOREGROUND_IOU:
        return "Loc", int(same_class.argmax())
    if other_class.max() >= FOREGROUND_IOU:
        return "Cls", int(other_class.argmax())
    if np.where(is_found, same_class, 0).max() >= FOREGROUND_IOU:
        return "Dupe", None
    return ("Bkg" if iou.max() <= BACKGROUND_IOU else "Both"), None


def precision_curve(score: np.ndarray, is_correct: np.ndarray, num_objects: int) -> np.ndarray:
    """Return COCO's interpolated precision at the recalls 0, 0.01, ..., 1, (101,).

    The interpolated precision at a recall is the highest precision at this recall or a higher recall.

    Args:
        score: (N,) score of each detection.
        is_correct: (N,) whether each detection is correct.
        num_objects: the number of objects.
    """
    if num_objects == 0 or len(score) == 0:
        return np.zeros(len(RECALLS))
    num_correct = is_correct[np.argsort(-score, kind="stable")].cumsum()
    precision = np.maximum.accumulate((num_correct / np.arange(1, len(num_correct) + 1))[::-1])[::-1]
    index = np.searchsorted(num_correct / num_objects, RECALLS, side="left")
    return np.append(precision, 0)[index]


def tide(matches: Matches, num_classes: int) -> dict[str, float]:
    """Return AP50, and the gain of AP50 from a correction of each type of error.

    The keys are `AP50`, the six TYPES, `FalsePos` and `FalseNeg`. The corrections are:
        Cls, Loc: the detection becomes correct if no other detection takes its object and no better detection is
            corrected for the object. Otherwise the detection is removed.
        Both, Dupe, Bkg: the detection is removed.
        Miss: the missed objects are removed from the ground truth.
        FalsePos: every wrong detection ranks below every correct detection.
        FalseNeg: all objects without a correct detection are removed from the ground truth.

    As in TIDE, and unlike COCO's AP50, a class with detections and without objects counts as AP 0.

    Args:
        matches: the detections and objects.
        num_classes: the number of classes.

    Returns:
        Numbers that are not negative, as fractions of 1.
    """
    m = matches
    is_counted = ~m.is_ignored
    num_objects = np.bincount(m.truth, minlength=num_classes)

    def mean_ap(score, label, is_correct, objects) -> float:
        is_used = (objects > 0) | (np.bincount(label, minlength=num_classes) > 0)
        aps = [
            precision_curve(score[label == k], is_correct[label == k], objects[k]).mean()
            for k in np.flatnonzero(is_used)
        ]
        return float(np.mean(aps)) if aps else 0.0

    now = mean_ap(m.score[is_counted], m.label[is_counted], m.is_correct[is_counted], num_objects)
    gains = {}
    for index, name in enumerate(TYPES[:-1]):
        is_type = m.error == index
        is_corrected = is_type & (m.corrected_label >= 0)
        is_kept = (is_counted & ~is_type) | is_corrected
        label = np.where(is_corrected, m.corrected_label, m.label)
        is_correct = m.is_correct | is_corrected
        gains[name] = mean_ap(m.score[is_kept], label[is_kept], is_correct[is_kept], num_objects) - now
    num_reachable = num_objects - np.bincount(m.truth[m.is_missed], minlength=num_classes)
    num_found = np.bincount(m.truth[m.is_found], minlength=num_classes)
    counted = m.score[is_counted], m.label[is_counted], m.is_correct[is_counted]
    gains["Miss"] = mean_ap(*counted, num_reachable) - now
    gains["FalsePos"] = mean_ap(counted[2].astype(float), *counted[1:], num_objects) - now
    gains["FalseNeg"] = mean_ap(*counted, num_found) - now
    return {"AP50": now} | {name: max(0.0, gain) for name, gain in gains.items()}
