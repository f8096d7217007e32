"""The computation of an anatomy: error types, confusion, calibration and other causes of an evaluation's numbers."""

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
        metrics: the result of `coco_metrics` for this ground truth and these detections.
        ratios: background anchors per foreground anchor by image id; infinite without foreground.
        anchor_level: the separation of foreground and background by the anchors' scores.
        backend: as for `coco_metrics`.
        max_detections: as for `coco_metrics`.
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
    """Compute precision, recall and F1 of all classes together, over the threshold of the score.

    Args:
        matches: the detections and objects.
        names: the class names.
    """
    is_counted = ~matches.is_ignored
    scores = matches.score[is_counted]
    num_detections = np.array([(scores >= t).sum() for t in THRESHOLDS])
    num_correct = np.array([(matches.is_correct[is_counted] & (scores >= t)).sum() for t in THRESHOLDS])
    num_objects = len(matches.truth)
    with np.errstate(invalid="ignore"):
        precision = num_correct / num_detections
        recall = num_correct / num_objects if num_objects else np.full(len(num_correct), math.nan)
    f1 = 2 * num_correct / np.maximum(num_detections + num_objects, 1)
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
    """Compute COCO's 101-point precision at IoU 0.5 of each class that has objects, by the class's name.

    Args:
        matches: the detections and objects.
        names: the class names.
    """
    curves = {}
    for k, name in enumerate(names):
        is_class, num_objects = ~matches.is_ignored & (matches.label == k), int((matches.truth == k).sum())
        if num_objects:
            precision = precision_curve(matches.score[is_class], matches.is_correct[is_class], num_objects)
            curves[name] = PrecisionRecall(recall=RECALLS.tolist(), precision=precision.tolist())
    return curves


def confusion(ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], score: float) -> np.ndarray:
    """Count the confusions between classes: (K + 1, K + 1), rows the truth, columns the prediction, background last.

    The detections are matched in the order of their scores. Each detection takes the free object of the highest IoU,
    of any class, if the IoU is 0.5 or more. A detection without an object counts as background detected as the
    detection's class, unless more than half of its box lies in a crowd region. An object without a detection counts as
    detected as background.

    Args:
        ground_truth: a COCO dictionary.
        detections: COCO results.
        score: the lowest score of a detection that counts.
    """
    num_classes = len(ground_truth["categories"])
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for boxes, scores, labels, objects, truth, crowd in by_image(ground_truth, detections):
        iou = iou_xywh(boxes, objects[~crowd])
        in_crowd = np.any(iou_xywh(boxes, objects[crowd], of_first=True) > FOREGROUND_IOU, axis=1)
        is_free: np.ndarray = np.ones(iou.shape[1], bool)
        truth = truth[~crowd]
        for i in np.flatnonzero(scores >= score):
            overlap = np.where(is_free, iou[i], 0)
            j = int(overlap.argmax()) if len(overlap) else -1
            if j >= 0 and overlap[j] >= FOREGROUND_IOU:
                is_free[j] = False
                counts[truth[j], labels[i]] += 1
            elif not in_crowd[i]:
                counts[num_classes, labels[i]] += 1
        np.add.at(counts[:, num_classes], truth[is_free], 1)
    return counts


def calibration(matches: Matches) -> Calibration:
    """Compute the expected calibration error of the scores as probabilities of a correct detection (Guo et al. 2017).

    The error is sum_b (n_b / N) |precision_b - mean score_b| over equal bins b of the score, with n_b detections in
    bin b. It is NaN without detections. Detections below the score threshold of the evaluation are not included.
    """
    is_counted = ~matches.is_ignored
    score, is_correct = matches.score[is_counted], matches.is_correct[is_counted]
    bin_of_detection = np.minimum((score * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins, error = [], 0.0
    for b in range(CALIBRATION_BINS):
        in_bin = bin_of_detection == b
        if in_bin.any():
            mean, precision = float(score[in_bin].mean()), float(is_correct[in_bin].mean())
            bins.append(CalibrationBin(score=mean, precision=precision, count=int(in_bin.sum())))
            error += abs(precision - mean) * in_bin.sum()
    return Calibration(ece=float(error / len(score)) if len(score) else math.nan, bins=bins)


def at_border(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], matches: Matches, score: float
) -> AtBorder:
    """Count the objects, and the wrong detections of at least `score`, that touch the border of their image.

    A box touches the border if its distance to the border is at most a hundredth of the image's side. A high share of
    wrong detections at the border has two usual causes: training crops images, or the border cuts objects that are
    not annotated.

    Args:
        ground_truth: a COCO dictionary.
        detections: COCO results.
        matches: the result of `match` for this ground truth and these detections.
        score: the lowest score of a detection that counts.
    """
    touching, touching_objects = [], []
    for image, (boxes, _, _, objects, _, crowd) in zip(
        ground_truth["images"], by_image(ground_truth, detections), strict=True
    ):
        size = np.array([image["width"], image["height"]])
        for touches, xywh in ((touching, boxes), (touching_objects, objects[~crowd])):
            low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
            touches.append(((low <= BORDER * size) | (high >= (1 - BORDER) * size)).any(axis=1))
    is_wrong = ~matches.is_correct & ~matches.is_ignored & (matches.score >= score)
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
    """Compute AP in each third of the images with foreground, in the order of their background per foreground anchor.

    Args:
        ground_truth: a COCO dictionary.
        detections: COCO results.
        ratios: background anchors per foreground anchor by image id; infinite without foreground.
        backend: as for `coco_metrics`.
        max_detections: as for `coco_metrics`.
    """
    images = sorted((image for image in ratios if math.isfinite(ratios[image])), key=ratios.__getitem__)
    parts = []
    for name, ids in zip(PARTS, np.array_split(np.array(images, dtype=object), len(PARTS)), strict=True):
        if len(ids) == 0:
            continue
        selected = set(ids)
        part = ground_truth | {
            "images": [image for image in ground_truth["images"] if image["id"] in selected],
            "annotations": [
                annotation for annotation in ground_truth["annotations"] if annotation["image_id"] in selected
            ],
        }
        results = [detection for detection in detections if detection["image_id"] in selected]
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
    """Return background anchors per foreground anchor of each image; infinite without foreground.

    Args:
        labels: (B, A), 0..K-1 foreground, K background, -1 ignored.
        num_classes: K.
    """
    num_bg, num_fg = (labels == num_classes).sum(dim=1), is_foreground(labels, num_classes).sum(dim=1)
    return (num_bg / num_fg).tolist()
