"""Where average precision is lost: six types of error, and what fixing each would give (Bolya et al. 2020, "TIDE: A
General Toolbox for Identifying Object Detection Errors").

The numbers equal those of the `tidecv` package where no two scores are equal. Equal scores keep the order of the images
and, in an image, of the detections. The precision then depends on that order, in `tidecv` too. `tidecv` puts corrected
detections in another order: AP50 stays equal, and costs may differ (by up to 0.12 for scores of one decimal).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.1
TYPES = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
RECALLS = np.arange(101) / 100  # TIDE's; COCO's linspace differs in the last digit of some


@dataclass(frozen=True, slots=True)
class Matches:
    """Every detection, image by image and best first, and every object that is no crowd, at IoU 0.5.

    Of N detections: score; label; correct (took an object of its class); ignored (in a crowd region); error, its place
    in TYPES, -1 for a correct one; fixed, the class of the object that it would find if its error were mended, -1 for
    none. Of M objects: truth, its label; found; missed (no error's mending would find it). Classes by their place."""

    score: np.ndarray
    label: np.ndarray
    correct: np.ndarray
    ignored: np.ndarray
    error: np.ndarray
    fixed: np.ndarray
    truth: np.ndarray
    found: np.ndarray
    missed: np.ndarray


def by_image(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each image: detections' boxes (N, 4) xywh, scores and labels, best first; objects' boxes, labels and crowd."""
    place = {category["id"]: k for k, category in enumerate(ground_truth["categories"])}
    found: dict[Any, list] = {image["id"]: [] for image in ground_truth["images"]}
    objects: dict[Any, list] = {image["id"]: [] for image in ground_truth["images"]}
    for one in detections:
        found[one["image_id"]].append((*one["bbox"], one["score"], place[one["category_id"]]))
    for one in ground_truth["annotations"]:
        objects[one["image_id"]].append((*one["bbox"], one.get("iscrowd", 0), place[one["category_id"]]))
    images = []
    for image in found:
        d = np.array(found[image], dtype=np.float64).reshape(-1, 6)
        d = d[np.argsort(-d[:, 4], kind="stable")]
        g = np.array(objects[image], dtype=np.float64).reshape(-1, 6)
        images.append((d[:, :4], d[:, 4], d[:, 5].astype(int), g[:, :4], g[:, 5].astype(int), g[:, 4] > 0))
    return images


def match(ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]]) -> Matches:
    """ground_truth: a COCO dictionary; detections: COCO results."""
    columns = zip(*(_match_image(*image) for image in by_image(ground_truth, detections)), strict=True)
    return Matches(*(np.concatenate(column) for column in columns))


def iou_xywh(a: np.ndarray, b: np.ndarray, *, of_first: bool = False) -> np.ndarray:
    """(N, 4) x (M, 4) -> (N, M) intersection over union, or over the area of `a` (COCO's measure for crowds)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2)
    area_a, area_b = a[:, 2:].prod(axis=1)[:, None], b[:, 2:].prod(axis=1)[None]
    whole = area_a + 0 * area_b if of_first else area_a + area_b - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _match_image(boxes, scores, labels, objects, truth, crowd) -> tuple[np.ndarray, ...]:
    regions, region_labels = objects[crowd], truth[crowd]
    objects, truth = objects[~crowd], truth[~crowd]
    n, m = len(boxes), len(objects)
    iou = iou_xywh(boxes, objects)
    same = labels[:, None] == truth[None]
    correct, found = np.zeros(n, bool), np.zeros(m, bool)
    for i in range(n if m else 0):
        free = np.where(same[i] & ~found, iou[i], 0)
        j = free.argmax()
        if free[j] >= FOREGROUND_IOU:
            correct[i] = found[j] = True
    inside = (iou_xywh(boxes, regions, of_first=True) > FOREGROUND_IOU) & (labels[:, None] == region_labels[None])
    ignored = ~correct & inside.any(axis=1)

    error, fixed = np.full(n, -1), np.full(n, -1)
    usable = np.zeros(m, bool)
    for i in np.flatnonzero(~correct):
        name, j = _error(iou[i], same[i], found) if m else ("Bkg", None)
        error[i] = TYPES.index(name)
        if j is not None and not found[j]:
            if not usable[j]:  # the best of those that would find it
                fixed[i] = truth[j]
            usable[j] = True
    return scores, labels, correct, ignored, error, fixed, truth, found, ~found & ~usable


def _error(iou: np.ndarray, same: np.ndarray, found: np.ndarray) -> tuple[str, int | None]:
    """The type of a wrong detection's error, and the object that it meant."""
    own, others = np.where(same, iou, 0), np.where(same, 0, iou)
    if BACKGROUND_IOU <= own.max() <= FOREGROUND_IOU:
        return "Loc", int(own.argmax())
    if others.max() >= FOREGROUND_IOU:
        return "Cls", int(others.argmax())
    if np.where(found, own, 0).max() >= FOREGROUND_IOU:
        return "Dupe", None
    return ("Bkg" if iou.max() <= BACKGROUND_IOU else "Both"), None


def precision_curve(score: np.ndarray, correct: np.ndarray, num_objects: int) -> np.ndarray:
    """(101,) COCO's interpolated precision at recalls 0, 0.01, ..., 1: the best precision at any higher recall."""
    if num_objects == 0 or len(score) == 0:
        return np.zeros(len(RECALLS))
    hits = correct[np.argsort(-score, kind="stable")].cumsum()
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    place = np.searchsorted(hits / num_objects, RECALLS, side="left")
    return np.append(precision, 0)[place]


def tide(matches: Matches, num_classes: int) -> dict[str, float]:
    """AP50, and for each of the six TYPES, and for all false positives and false negatives, how much AP50 would rise
    if they were mended: fractions, from 0 on.

    A `Cls` or `Loc` error is mended into a correct detection, if its object is not found otherwise and no better
    detection is mended for it, and else removed; `Both`, `Dupe` and `Bkg` are removed; `Miss`ed objects are taken out
    of the ground truth. FalsePos: every wrong detection ranks below every correct one; FalseNeg: what is not found is
    taken out. As TIDE does, and unlike COCO's AP50, a class that is detected but has no objects counts as 0."""
    m = matches
    counted = ~m.ignored
    num_objects = np.bincount(m.truth, minlength=num_classes)

    def mean_ap(score, label, correct, objects) -> float:
        used = (objects > 0) | (np.bincount(label, minlength=num_classes) > 0)
        aps = [precision_curve(score[label == k], correct[label == k], objects[k]).mean() for k in np.flatnonzero(used)]
        return float(np.mean(aps)) if aps else 0.0

    now = mean_ap(m.score[counted], m.label[counted], m.correct[counted], num_objects)
    costs = {}
    for place, name in enumerate(TYPES[:-1]):
        kind = m.error == place
        mended = kind & (m.fixed >= 0)
        kept = (counted & ~kind) | mended
        label = np.where(mended, m.fixed, m.label)
        costs[name] = mean_ap(m.score[kept], label[kept], (m.correct | mended)[kept], num_objects) - now
    left = num_objects - np.bincount(m.truth[m.missed], minlength=num_classes)
    found = np.bincount(m.truth[m.found], minlength=num_classes)
    shown = m.score[counted], m.label[counted], m.correct[counted]
    costs["Miss"] = mean_ap(*shown, left) - now
    costs["FalsePos"] = mean_ap(shown[2].astype(float), *shown[1:], num_objects) - now
    costs["FalseNeg"] = mean_ap(*shown, found) - now
    return {"AP50": now} | {name: max(0.0, cost) for name, cost in costs.items()}
