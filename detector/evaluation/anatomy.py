"""What an evaluation's one number is made of."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from detector.core.errors import one_line
from detector.evaluation.coco import coco_metrics
from detector.evaluation.tide import FOREGROUND_IOU, RECALLS, Matches, by_image, iou_xywh, match, precision_curve, tide

THRESHOLDS = np.arange(0, 100) / 100
CALIBRATION_BINS = 10
BORDER = 0.01
PARTS = ("lowest third", "middle third", "highest third")


def make_anatomy(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    metrics: dict,
    ratios: dict[Any, float],
    *,
    backend: str,
    max_detections: int,
) -> dict:
    """Plain numbers, NaN where there is nothing to measure. metrics: `coco_metrics` of the same; ratios: of each image
    id, background per foreground anchor (inf without foreground)."""
    names = [category["name"] for category in ground_truth["categories"]]
    matches = match(ground_truth, detections)
    curves = threshold_curves(matches)
    score = curves["best_f1"]["score"]
    return {
        "tide": tide(matches, len(names)),
        "confusion": {
            "names": [*names, "background"],
            "counts": confusion(ground_truth, detections, score).tolist(),
            "score": score,
        },
        "curves": curves | {"pr": class_curves(matches, names)},
        "calibration": calibration(matches),
        "at_border": at_border(ground_truth, detections, matches, score),
        "by_imbalance": by_ratio(ground_truth, detections, ratios, backend=backend, max_detections=max_detections),
        "by_size": {"small": metrics["APs"], "medium": metrics["APm"], "large": metrics["APl"]},
    }


def threshold_curves(matches: Matches) -> dict:
    """Precision, recall and F1 of all classes together, at IoU 0.5, where only scores of at least the threshold count.
    Precision is NaN where none does, recall where there is no object; F1 is 0 where either is. `best_f1` is the lowest
    threshold of the highest F1."""
    counted = ~matches.ignored
    scores = matches.score[counted]
    shown = np.array([(scores >= t).sum() for t in THRESHOLDS])
    hits = np.array([(matches.correct[counted] & (scores >= t)).sum() for t in THRESHOLDS])
    objects = len(matches.truth)
    with np.errstate(invalid="ignore"):
        precision, recall = hits / shown, hits / objects if objects else np.full(len(hits), math.nan)
    f1 = 2 * hits / np.maximum(shown + objects, 1)
    best = int(f1.argmax())
    return {
        "thresholds": THRESHOLDS.tolist(),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "best_f1": {
            "score": float(THRESHOLDS[best]),
            "precision": float(precision[best]),
            "recall": float(recall[best]),
            "f1": float(f1[best]),
        },
    }


def class_curves(matches: Matches, names: Sequence[str]) -> dict:
    """COCO's 101-point precision at IoU 0.5 of each class that has objects."""
    curves = {}
    for k, name in enumerate(names):
        own, objects = ~matches.ignored & (matches.label == k), int((matches.truth == k).sum())
        if objects:
            precision = precision_curve(matches.score[own], matches.correct[own], objects)
            curves[name] = {"recall": RECALLS.tolist(), "precision": precision.tolist()}
    return curves


def confusion(ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], score: float) -> np.ndarray:
    """(K + 1, K + 1) counts, rows the truth, columns the prediction, background last: of the detections of at least
    `score`, best first, each takes the free object that it overlaps most, of whatever class, at IoU 0.5 or above. One
    that takes none is background taken for its class, unless more than half of it lies in a crowd region; an object
    that none takes is taken for background."""
    num_classes = len(ground_truth["categories"])
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for boxes, scores, labels, objects, truth, crowd in by_image(ground_truth, detections):
        iou = iou_xywh(boxes, objects[~crowd])
        in_crowd = (iou_xywh(boxes, objects[crowd], of_first=True) > FOREGROUND_IOU).any(axis=1)
        free, truth = np.ones(iou.shape[1], bool), truth[~crowd]
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


def calibration(matches: Matches) -> dict:
    """Expected calibration error of the scores as chances to be correct: over equal bins of the score, the mean
    |precision - mean score|, weighted by the detections in each (Guo et al. 2017); NaN without detections. The
    detections below the evaluation's score threshold are not there to be counted."""
    counted = ~matches.ignored
    score, correct = matches.score[counted], matches.correct[counted]
    place = np.minimum((score * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins, error = [], 0.0
    for b in range(CALIBRATION_BINS):
        own = place == b
        if own.any():
            mean, precision = float(score[own].mean()), float(correct[own].mean())
            bins.append({"score": mean, "precision": precision, "count": int(own.sum())})
            error += abs(precision - mean) * own.sum()
    return {"ece": float(error / len(score)) if len(score) else math.nan, "bins": bins}


def at_border(
    ground_truth: dict[str, Any], detections: Sequence[dict[str, Any]], matches: Matches, score: float
) -> dict[str, list[int]]:
    """How many touch their picture's border (to a hundredth of its side), and how many there are: of the `objects` that
    are no crowd, and of the `wrong` detections of at least `score`. Annotators that leave cut objects out, under a
    training that crops, show here."""
    touching, touching_objects = [], []
    for image, (boxes, _, _, objects, _, crowd) in zip(
        ground_truth["images"], by_image(ground_truth, detections), strict=True
    ):
        size = np.array([image["width"], image["height"]])
        for found, of in ((touching, boxes), (touching_objects, objects[~crowd])):
            low, high = of[:, :2], of[:, :2] + of[:, 2:]
            found.append(((low <= BORDER * size) | (high >= (1 - BORDER) * size)).any(axis=1))
    wrong = ~matches.correct & ~matches.ignored & (matches.score >= score)
    return {
        name: [int(these.sum()), len(these)]
        for name, these in (
            ("objects", np.concatenate(touching_objects)),
            ("wrong", np.concatenate(touching)[wrong]),
        )
    }


def by_ratio(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    ratios: dict[Any, float],
    *,
    backend: str,
    max_detections: int,
) -> list[dict]:
    """AP in each third of the images that have foreground, by their background per foreground anchor."""
    images = sorted((image for image in ratios if math.isfinite(ratios[image])), key=ratios.__getitem__)
    parts = []
    for name, ids in zip(PARTS, np.array_split(np.array(images, dtype=object), len(PARTS)), strict=True):
        if len(ids) == 0:
            continue
        own = set(ids)
        part = ground_truth | {
            "images": [image for image in ground_truth["images"] if image["id"] in own],
            "annotations": [one for one in ground_truth["annotations"] if one["image_id"] in own],
        }
        found = [one for one in detections if one["image_id"] in own]
        metrics = coco_metrics(part, found, backend=backend, max_detections=max_detections)
        parts.append(
            {
                "name": name,
                "background_per_foreground": [ratios[ids[0]], ratios[ids[-1]]],
                "images": len(ids),
                "AP": metrics["AP"],
                "AP50": metrics["AP50"],
            }
        )
    return parts


def background_per_foreground(labels: Tensor, num_classes: int) -> list[float]:
    """Of each image, from its anchors' labels (B, A); inf without foreground."""
    background, foreground = (labels == num_classes).sum(dim=1), ((labels >= 0) & (labels < num_classes)).sum(dim=1)
    return (background / foreground).tolist()


def describe(anatomy: dict) -> str:
    """Its main figures in a few lines."""
    costs = {name: cost for name, cost in anatomy["tide"].items() if name != "AP50"}
    lines = ["AP50 lost to errors (TIDE): " + "  ".join(f"{name} {cost:.3f}" for name, cost in costs.items())]
    best = anatomy["curves"]["best_f1"]
    lines.append(
        f"best F1 {best['f1']:.3f} at score {best['score']:.2f} (precision {best['precision']:.3f}, recall "
        f"{best['recall']:.3f}); calibration error {anatomy['calibration']['ece']:.3f}"
    )
    names, counts = [one_line(name) for name in anatomy["confusion"]["names"]], anatomy["confusion"]["counts"]
    wrong = [
        (counts[i][j], f"{truth} taken for {taken} {counts[i][j]}")
        for i, truth in enumerate(names)
        for j, taken in enumerate(names)
        if i != j and counts[i][j]
    ]
    if wrong:
        worst = [text for _, text in sorted(wrong, key=lambda one: -one[0])[:4]]
        lines.append(f"most often, at that score: {', '.join(worst)}")
    (objects, num_objects), (wrongly, num_wrong) = anatomy["at_border"]["objects"], anatomy["at_border"]["wrong"]
    if num_objects and num_wrong:
        shares = f"{objects / num_objects:.0%} of the objects, {wrongly / num_wrong:.0%} of the wrong detections"
        lines.append(f"at the picture's border: {shares} at that score")
    scores = anatomy["anchor_level"]
    lines.append(f"anchors: ROC-AUC {scores['roc_auc']:.4f}, average precision {scores['average_precision']:.4f}")
    for part in anatomy["by_imbalance"]:
        low, high = part["background_per_foreground"]
        lines.append(f"images of {low:.0f} to {high:.0f} background anchors per foreground anchor: AP {part['AP']:.3f}")
    return "\n".join(lines)
