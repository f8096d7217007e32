"""COCO's scoring of a large evaluation: hotcoco against pycocotools on the same detections."""

from functools import partial

import numpy as np

from detector.benchmarks.timing import alternate, compare
from detector.evaluation.coco import coco_metrics

BOXES_PER_IMAGE = 7.3  # COCO val2017: 36,781 boxes in 5,000 images
NUM_CLASSES = 80


def draw(num_images: int, detections_per_image: int) -> tuple[dict, list[dict]]:
    """Ground truth with COCO val's numbers of boxes, and detections of which most objects have a jittered one."""
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
        of = rng.integers(len(boxes), size=detections_per_image)
        found = boxes[of] + rng.normal(0, 0.1, (detections_per_image, 4)) * boxes[of][:, [2, 3, 2, 3]]
        found[:, 2:] = found[:, 2:].clip(2)
        wrong = rng.random(detections_per_image) < 0.3
        labels = np.where(wrong, rng.integers(NUM_CLASSES, size=detections_per_image), classes[of])
        scores = rng.beta(1, 5, detections_per_image)
        detections += [
            {"image_id": image, "category_id": k, "bbox": box, "score": s}
            for k, box, s in zip(labels.tolist(), found.tolist(), scores.tolist(), strict=True)
        ]
    categories = [{"id": k, "name": str(k)} for k in range(NUM_CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def run(*, images: int, detections: int, rounds: int) -> dict:
    """Both from a dictionary and a list of results to COCO's twelve numbers, which must be the same."""
    truth, found = draw(images, detections)
    score = {name: partial(coco_metrics, truth, found, backend=name) for name in ("hotcoco", "pycocotools")}
    answers = [call() for call in score.values()]
    gap = max(abs(answers[0][key] - answers[1][key]) for key in ("AP", "AP50", "AR100"))
    rows = compare(alternate(score, rounds=rounds, warmup=0), "hotcoco")
    return {
        "benchmark": "evaluation",
        "images": images,
        "boxes": len(truth["annotations"]),
        "detections": len(found),
        "largest_difference": gap,
        "rows": rows,
    }
