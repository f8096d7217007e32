"""The results of an evaluation as files (numbers, detections, pictures) and as a summary in text."""

import math
from pathlib import Path

import cv2
import numpy as np

from detector.core.drawing import draw_boxes
from detector.core.errors import one_line
from detector.core.files import read_json, unique_names, write_json
from detector.core.json_records import read_record
from detector.core.plotting import optional
from detector.data.dataset import DetectionDataset
from detector.data.images import write_image
from detector.evaluation.metrics import EVALUATE, Metrics

MIN_PICTURE_SIDE = 320
MAX_PICTURE_SIDE = 4000  # the limit of the enlargement
MAX_JPEG_SIDE = 65_500
MAX_NAMES = 5  # of classes in a line
MAX_CLASSES = 20  # lines of the summary
NUM_LOWEST = 10


def save_evaluation(folder: Path, metrics: Metrics, detections: list[dict]) -> None:
    """Write metrics.json and detections.json (COCO results).

    Args:
        folder: the folder of the files.
        metrics: the metrics.
        detections: the detections, as COCO results.
    """
    write_json(folder / "metrics.json", metrics.to_json())
    write_json(folder / "detections.json", detections)


def load_evaluation(folder: Path) -> tuple[Metrics, list[dict]]:
    """Read the files of `save_evaluation`.

    Raises:
        UserError: metrics.json is not a valid record of metrics.
    """
    metrics = read_record(folder / "metrics.json", Metrics, EVALUATE)
    return metrics, read_json(folder / "detections.json")


def save_pictures(folder: Path, dataset: DetectionDataset, detections: list[dict], *, count: int, score: float) -> None:
    """Write the first images with their detections into the folder `pictures`.

    If a picture cannot be drawn, the function warns and continues with the next picture.

    Args:
        folder: the run folder.
        dataset: the data set of the detections.
        detections: the detections, as COCO results.
        count: the number of images.
        score: the lowest score of a drawn detection.
    """
    names = unique_names([record.path.stem for record in dataset.records[:count]])
    for index, name in enumerate(names):
        path = folder / "pictures" / f"{name}.jpg"
        with optional(f"{path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, _picture(dataset, index, [d for d in detections if d["score"] >= score]))


def _picture(dataset: DetectionDataset, index: int, detections: list[dict]) -> np.ndarray:
    """Draw the detections on an image. A small image is enlarged first, so that the labels do not cover it."""
    sample = dataset[index]
    detections = [d for d in detections if d["image_id"] == sample.image_id]
    height, width = sample.image.shape[:2]
    short, long = sorted((height, width))
    factor = max(1, min(round(MIN_PICTURE_SIDE / short), MAX_PICTURE_SIDE // long))
    factor = min(factor, MAX_JPEG_SIDE / long)
    size = [max(1, int(side * factor)) for side in (width, height)]
    xywh = factor * np.array([d["bbox"] for d in detections], dtype=np.float32).reshape(-1, 4)
    label_of = {category: k for k, category in enumerate(dataset.category_ids)}
    return draw_boxes(
        cv2.resize(sample.image, size, interpolation=cv2.INTER_NEAREST),
        np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1),
        np.array([label_of[d["category_id"]] for d in detections], dtype=np.int64),
        dataset.class_names,
        np.array([d["score"] for d in detections], dtype=np.float32),
    )


def summary(metrics: Metrics, detections: list[dict]) -> str:
    """Return COCO's numbers and the AP of the classes as lines of text.

    The text also names the cause of a NaN, or that there are no detections. If there are more than 20 classes, the text
    lists the 10 classes with the lowest AP.

    Args:
        metrics: the metrics.
        detections: the detections, as COCO results.
    """
    lines = ["  ".join(f"{name} {value:.3f}" for name, value in metrics.numbers.items())]
    per_class = [(one_line(name), values) for name, values in metrics.per_class.items()]
    if len(per_class) > MAX_CLASSES:
        with_objects = [(name, values) for name, values in per_class if not math.isnan(values.AP)]
        per_class = sorted(with_objects, key=lambda pair: pair[1].AP)[:NUM_LOWEST]
        lines.append(f"the {len(per_class)} classes with the lowest AP, of {len(metrics.per_class)}:")
    width = max((len(name) for name, _ in per_class), default=0)
    lines += [f"  {name:<{width}}  AP {values.AP:.3f}  AP50 {values.AP50:.3f}" for name, values in per_class]
    missing = _missing(metrics)
    if missing:
        lines.append(f"nan: the validation images have no {' and no '.join(missing)} (crowd regions are not counted)")
    if not detections:
        lines.append("the model has no detection with a score above evaluation.score_threshold")
    return "\n".join(lines)


def _missing(metrics: Metrics) -> list[str]:
    """Return the kinds of objects that the images do not contain. Their numbers are NaN."""
    if math.isnan(metrics["AP"]):
        return ["objects"]
    sizes = {"small": "s", "medium": "m", "large": "l"}
    missing = [f"{size} objects (AP{s}, AR{s})" for size, s in sizes.items() if math.isnan(metrics[f"AP{s}"])]
    classes = [one_line(name) for name, values in metrics.per_class.items() if math.isnan(values.AP)]
    if classes:
        are_few = len(classes) <= MAX_NAMES
        missing.append(f"objects of {', '.join(classes) if are_few else f'{len(classes)} of the classes'}")
    return missing
