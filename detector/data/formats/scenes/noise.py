"""The noise of annotations: missed, displaced and mislabeled boxes, as annotators produce them."""

import numpy as np

from detector.data.formats.scenes.settings import SceneSettings

JITTER = 0.25  # each edge of a jittered box moves by at most this fraction of the side


def add_noise(
    annotations: list[dict], settings: SceneSettings, noise: tuple[float, float, float], rng: np.random.Generator
) -> list[dict]:
    """Return COCO annotations with noise and unchanged ids.

    The random numbers of a box do not depend on the fractions, so that more noise changes the same boxes and others.

    Args:
        annotations: the annotations.
        settings: the settings of the scenes.
        noise: the fractions of (missed, jittered, mislabelled) boxes.
        rng: the generator of all random numbers.
    """
    noisy = []
    for annotation in annotations:
        missed, jittered, mislabelled = rng.uniform(size=3) < noise
        shifts = rng.uniform(-JITTER, JITTER, 4)
        other_class = rng.integers(1, settings.num_classes)
        if missed:
            continue
        x, y, w, h = annotation["bbox"]
        box, label = np.array([x, y, x + w, y + h]), annotation["category_id"] - 1
        if jittered:
            box = np.clip(box + shifts * [w, h, w, h], 0, settings.image_size).round(2)
        if mislabelled:
            label = (label + int(other_class)) % settings.num_classes
        noisy.append(annotation | coco_box(box.tolist(), label))
    return noisy


def coco_box(box_xyxy: list[float], label: int) -> dict:
    """Return the fields of a COCO annotation for a box and its class.

    Args:
        box_xyxy: the box in pixels.
        label: the class, 0..K-1.
    """
    x1, y1, x2, y2 = box_xyxy
    width, height = round(x2 - x1, 2), round(y2 - y1, 2)
    area = round(width * height, 4)
    return {"category_id": label + 1, "bbox": [x1, y1, width, height], "area": area, "iscrowd": 0}
