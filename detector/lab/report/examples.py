"""The choice of validation images to show: those with the best and with the worst F1."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.data.dataset import DetectionDataset
from detector.evaluation.anatomy import make_curves
from detector.evaluation.tide import Matches, by_image, match

NUM_EXAMPLES = 3  # of each kind


@dataclass(frozen=True, slots=True)
class Box:
    """A box of an example: xywh in pixels of the image; kind is `right`, `wrong` or `missed`; text names it."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Example:
    """An image of the data set, by its index, with its boxes and its F1 (0..1)."""

    index: int
    f1: float
    boxes: list[Box]

    def count(self, kind: str) -> int:
        """Return the number of boxes of a kind."""
        return sum(box.kind == kind for box in self.boxes)


@dataclass(frozen=True, slots=True)
class Examples:
    """The best and the worst images at a score threshold. An image is in one of the lists alone."""

    threshold: float
    best: list[Example]
    worst: list[Example]


def choose_examples(dataset: DetectionDataset, detections: Sequence[dict[str, Any]]) -> Examples:
    """Choose the images of the highest and the lowest F1, at the score threshold of the highest F1 of all images.

    Of images with equal F1, those with more objects come first. An image without objects and without detections has
    no F1. Objects and detections match at IoU 0.5, as in `detector.evaluation.tide`.

    Args:
        dataset: the images with their objects.
        detections: COCO results on these images.
    """
    truth = dataset.ground_truth()
    matches = match(truth, detections)
    threshold = make_curves(matches, dataset.class_names).best_f1.score
    f1, num_objects = _f1_of_images(by_image(truth, detections), matches, threshold)
    measured = np.flatnonzero(~np.isnan(f1)).tolist()
    num = min(NUM_EXAMPLES, len(measured) // 2)
    best = sorted(measured, key=lambda i: (-f1[i], -num_objects[i]))[:num]
    worst = sorted(set(measured) - set(best), key=lambda i: (f1[i], -num_objects[i]))[:num]
    best_examples, worst_examples = (
        [Example(i, float(f1[i]), _boxes(truth, detections, i, threshold)) for i in chosen] for chosen in (best, worst)
    )
    return Examples(threshold, best_examples, worst_examples)


def _f1_of_images(images: Sequence[tuple], matches: Matches, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the F1 of each image, NaN without objects and detections, and its number of objects.

    images: those of `by_image`, in the order of the matches.
    """
    counts = matches.score >= threshold
    f1, num_objects = np.full(len(images), np.nan), np.zeros(len(images), dtype=int)
    end = 0
    for i, (_, scores, *_, crowd) in enumerate(images):
        rows, end = slice(end, end + len(scores)), end + len(scores)
        hits = int((matches.is_correct[rows] & counts[rows]).sum())
        shown = int((~matches.is_ignored[rows] & counts[rows]).sum())
        num_objects[i] = (~crowd).sum()
        if shown + num_objects[i]:
            f1[i] = 2 * hits / (shown + num_objects[i])
    return f1, num_objects


def _boxes(truth: dict[str, Any], detections: Sequence[dict[str, Any]], index: int, threshold: float) -> list[Box]:
    """Return the boxes of an image: missed objects, then wrong and right detections of at least the threshold."""
    image = truth["images"][index]
    image_truth = truth | {
        "images": [image],
        "annotations": [row for row in truth["annotations"] if row["image_id"] == image["id"]],
    }
    shown = [row for row in detections if row["image_id"] == image["id"] and row["score"] >= threshold]
    names = [category["name"] for category in truth["categories"]]
    matches = match(image_truth, shown)
    ((boxes, scores, labels, objects, object_labels, crowd),) = by_image(image_truth, shown)
    missed = [
        Box(*box, "missed", names[label])
        for box, label, is_found in zip(objects[~crowd].tolist(), object_labels[~crowd], matches.is_found, strict=True)
        if not is_found
    ]
    detected = [
        Box(*box, "right" if is_correct else "wrong", f"{names[label]} {score:.2f}")
        for box, score, label, is_correct, is_ignored in zip(
            boxes.tolist(), scores, labels, matches.is_correct, matches.is_ignored, strict=True
        )
        if not is_ignored
    ]
    return [*missed, *sorted(detected, key=lambda box: box.kind, reverse=True)]
