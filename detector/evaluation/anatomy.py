"""The making of an anatomy: error types, confusion, calibration and other causes behind an evaluation's numbers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from detector.core.structures import is_foreground
from detector.evaluation.anatomy_result import (
    Anatomy,
    AtBorder,
    Calibration,
    CalibrationBin,
    Confusion,
    Curves,
    ImbalancePart,
    OperatingPoint,
    PrecisionRecall,
)
from detector.evaluation.anchor_scores import AnchorRanking
from detector.evaluation.coco import coco_metrics
from detector.evaluation.metrics import Metrics
from detector.evaluation.tide import FOREGROUND_IOU, RECALLS, Matches, by_image, iou_xywh, match, precision_curve, tide

THRESHOLDS = np.arange(0, 100) / 100
CALIBRATION_BINS = 10
BORDER = 0.01
PARTS = ("lowest third", "middle third", "highest third")


def make_anatomy(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    metrics: Metrics,
    ratios: dict[Any, float],
    anchor_level: AnchorRanking,
    *,
    backend: str,
    max_detections: int,
) -> Anatomy:
    """Make the anatomy of an evaluation.

    Args:
        ground_truth: a COCO dictionary.
        detections: COCO results.
        metrics: `coco_metrics` of both.
        ratios: background anchors per foreground anchor by image id; infinite without foreground.
        anchor_level: how well anchors' scores separate foreground from background.
        backend, max_detections: as for `coco_metrics`.
    """
    names = [category["name"] for category in ground_truth["categories"]]
    matches = match(ground_truth, detections)
    curves = make_curves(matches, names)
    score = curves.best_f1.score
    return Anatomy(
        tide=tide(matches, len(names)),
        confusion=Confusion(
            names=[*names, "background"], counts=confusion(ground_truth, detections, score).tolist(), score=score
        ),
        curves=curves,
        calibration=calibration(matches),
        at_border=at_border(ground_truth, detections, matches, score),
        by_imbalance=by_ratio(ground_truth, detections, ratios, backend=backend, max_detections=max_detections),
        by_size={"small": metrics["APs"], "medium": metrics["APm"], "large": metrics["APl"]},
        anchor_level=anchor_level,
    )


def make_curves(matches: Matches, names: Sequence[str]) -> Curves:
    """Compute precision, recall and F1 of all classes together, where the scores of at least a threshold count."""
    counted = ~matches.ignored
    scores = matches.score[counted]
    shown = np.array([(scores >= t).sum() for t in THRESHOLDS])
    hits = np.array([(matches.correct[counted] & (scores >= t)).sum() for t in THRESHOLDS])
    objects = len(matches.truth)
    with np.errstate(invalid="ignore"):
        precision, recall = hits / shown, hits / objects if objects else np.full(len(hits), math.nan)
    f1 = 2 * hits / np.maximum(shown + objects, 1)
    best = int(f1.argmax())
    return Curves(
        thresholds=THRESHOLDS.tolist(),
        precision=precision.tolist(),
        recall=recall.tolist(),
        f1=f1.tolist(),
        best_f1=OperatingPoint(
            score=float(THRESHOLDS[best]),
            precision=float(precision[best]),
            recall=float(recall[best]),
            f1=float(f1[best]),
        ),
        pr=class_curves(matches, names),
    )


def class_curves(matches: Matches, names: Sequence[str]) -> dict[str, PrecisionRecall]:
    """Compute COCO's 101-point precision at IoU 0.5 of each class that has objects, by the class's name."""
    curves = {}
    for k, name in enumerate(names):
        is_class, objects = ~matches.ignored & (matches.label == k), int((matches.truth == k).sum())
        if objects:
            precision = precision_curve(matches.score[is_class], matches.correct[is_class], objects)
            curves[name] = PrecisionRecall(recall=RECALLS.tolist(), precision=precision.tolist())
    return curves


def confusion(ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], score: float) -> np.ndarray:
    """Count which class is detected as which: (K + 1, K + 1), rows the truth, columns the prediction, background last.

    The detections of at least `score` are taken in the order of their scores. Each detection takes the free object that
    it overlaps most, whatever its class, at IoU 0.5 or above. A detection without an object is background detected as
    the detection's class; it does not count where more than half of it lies in a crowd region. An object that no
    detection takes is detected as background.
    """
    num_classes = len(ground_truth["categories"])
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for boxes, scores, labels, objects, truth, crowd in by_image(ground_truth, detections):
        iou = iou_xywh(boxes, objects[~crowd])
        in_crowd = np.any(iou_xywh(boxes, objects[crowd], of_first=True) > FOREGROUND_IOU, axis=1)
        free: np.ndarray = np.ones(iou.shape[1], bool)
        truth = truth[~crowd]
        for i in np.flatnonzero(scores >= score):
            overlap = np.where(free, iou[i], 0)
            j = int(overlap.argmax()) if len(overlap) else -1
            if j >= 0 and overlap[j] >= FOREGROUND_IOU:
                free[j] = False
                counts[truth[j], labels[i]] += 1
            elif not in_crowd[i]:
                counts[num_classes, labels[i]] += 1
        np.add.at(counts[:, num_classes], truth[free], 1)
    return counts


def calibration(matches: Matches) -> Calibration:
    """Compute the expected calibration error of the scores as probabilities of a correct detection (Guo et al. 2017).

    The error is sum_b (n_b / N) |precision_b - mean score_b| over equal bins b of the score, n_b detections in each.
    It is NaN without detections. The detections below the evaluation's score threshold are not there to be counted.
    """
    counted = ~matches.ignored
    score, correct = matches.score[counted], matches.correct[counted]
    bin_of_detection = np.minimum((score * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins, error = [], 0.0
    for b in range(CALIBRATION_BINS):
        in_bin = bin_of_detection == b
        if in_bin.any():
            mean, precision = float(score[in_bin].mean()), float(correct[in_bin].mean())
            bins.append(CalibrationBin(score=mean, precision=precision, count=int(in_bin.sum())))
            error += abs(precision - mean) * in_bin.sum()
    return Calibration(ece=float(error / len(score)) if len(score) else math.nan, bins=bins)


def at_border(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], matches: Matches, score: float
) -> AtBorder:
    """Count the objects, and the wrong detections of at least `score`, that touch the border of their image.

    A box touches the border where it comes within a hundredth of the image's side. Many wrong detections there mean
    that training crops images, and that the annotators leave out objects that the border cuts.
    """
    touching, touching_objects = [], []
    for image, (boxes, _, _, objects, _, crowd) in zip(
        ground_truth["images"], by_image(ground_truth, detections), strict=True
    ):
        size = np.array([image["width"], image["height"]])
        for touches, xywh in ((touching, boxes), (touching_objects, objects[~crowd])):
            low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
            touches.append(((low <= BORDER * size) | (high >= (1 - BORDER) * size)).any(axis=1))
    is_wrong = ~matches.correct & ~matches.ignored & (matches.score >= score)
    objects, wrong = np.concatenate(touching_objects), np.concatenate(touching)[is_wrong]
    return AtBorder(objects=(int(objects.sum()), len(objects)), wrong=(int(wrong.sum()), len(wrong)))


def by_ratio(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    ratios: dict[Any, float],
    *,
    backend: str,
    max_detections: int,
) -> list[ImbalancePart]:
    """Compute AP in each third of the images that have foreground, by their background per foreground anchor."""
    images = sorted((image for image in ratios if math.isfinite(ratios[image])), key=ratios.__getitem__)
    parts = []
    for name, ids in zip(PARTS, np.array_split(np.array(images, dtype=object), len(PARTS)), strict=True):
        if len(ids) == 0:
            continue
        chosen = set(ids)
        part = ground_truth | {
            "images": [image for image in ground_truth["images"] if image["id"] in chosen],
            "annotations": [
                annotation for annotation in ground_truth["annotations"] if annotation["image_id"] in chosen
            ],
        }
        results = [detection for detection in detections if detection["image_id"] in chosen]
        metrics = coco_metrics(part, results, backend=backend, max_detections=max_detections)
        parts.append(
            ImbalancePart(
                name=name,
                background_per_foreground=(ratios[ids[0]], ratios[ids[-1]]),
                images=len(ids),
                AP=metrics["AP"],
                AP50=metrics["AP50"],
            )
        )
    return parts


def background_per_foreground(labels: Tensor, num_classes: int) -> list[float]:
    """Divide the number of background anchors of each image by its foreground anchors; infinite without foreground.

    labels: (B, A), 0..K-1 foreground, K background, -1 ignored.
    """
    background, foreground = (labels == num_classes).sum(dim=1), is_foreground(labels, num_classes).sum(dim=1)
    return (background / foreground).tolist()
