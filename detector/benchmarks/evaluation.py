"""The duration of COCO's metrics for a large evaluation: hotcoco against pycocotools on the same detections."""

from functools import partial

import numpy as np

from detector.benchmarks.timing import alternate, compare
from detector.evaluation.coco import coco_metrics

BOXES_PER_IMAGE = 7.3  # COCO val2017: 36,781 boxes in 5,000 images
NUM_CLASSES = 80


def draw(num_images: int, detections_per_image: int) -> tuple[dict, list[dict]]:
    """Return ground truth with COCO val's numbers of boxes, and detections displaced at random from its objects.

    Args:
        num_images: the number of images.
        detections_per_image: the number of detections of each image.
    """
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(num_images)]
    annotations, detections = [], []
    for image in range(num_images):
        count = rng.poisson(BOXES_PER_IMAGE)
        size = np.exp(rng.uniform(np.log(10), np.log(300), (max(count, 1), 2)))
        boxes = np.concatenate((rng.uniform(0, 1, size.shape) * ((640, 480) - size).clip(1), size), axis=1)
        classes = rng.zipf(1.3, max(count, 1)) % NUM_CLASSES
        for box, k in zip(boxes[:count].tolist(), classes[:count].tolist(), strict=True):
            area = box[2] * box[3]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": k,
                    "bbox": box,
                    "area": area,
                    "iscrowd": 0,
                }
            )
        object_index = rng.integers(len(boxes), size=detections_per_image)
        objects = boxes[object_index]
        displaced = objects + rng.normal(0, 0.1, (detections_per_image, 4)) * objects[:, [2, 3, 2, 3]]
        displaced[:, 2:] = displaced[:, 2:].clip(2)
        is_wrong = rng.random(detections_per_image) < 0.3
        labels = np.where(is_wrong, rng.integers(NUM_CLASSES, size=detections_per_image), classes[object_index])
        scores = rng.beta(1, 5, detections_per_image)
        detections += [
            {"image_id": image, "category_id": k, "bbox": box, "score": s}
            for k, box, s in zip(labels.tolist(), displaced.tolist(), scores.tolist(), strict=True)
        ]
    categories = [{"id": k, "name": str(k)} for k in range(NUM_CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def run(*, images: int, detections: int, rounds: int) -> dict:
    """Measure both libraries, from a COCO dictionary and a list of results to COCO's twelve numbers.

    Args:
        images: the number of images.
        detections: the number of detections of each image.
        rounds: the number of calls of each library.
    """
    truth, results = draw(images, detections)
    calls = {name: partial(coco_metrics, truth, results, backend=name) for name in ("hotcoco", "pycocotools")}
    first, second = (call() for call in calls.values())
    difference = max(abs(first[key] - second[key]) for key in ("AP", "AP50", "AR100"))
    rows = compare(alternate(calls, rounds=rounds, warmup=0), "hotcoco")
    return {
        "benchmark": "evaluation",
        "images": images,
        "boxes": len(truth["annotations"]),
        "detections": len(results),
        "largest_difference": difference,
        "rows": rows,
    }
