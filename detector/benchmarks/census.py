"""The duration of a census of a large data set, without the time to read the annotations."""

import time
from pathlib import Path

import numpy as np

from detector.build import build_census
from detector.config import load_config
from detector.data.dataset import DetectionDataset, Record

OBJECTS_PER_IMAGE = 7.3  # COCO val2017: 36,781 boxes in 5,000 images
NUM_CLASSES = 80
SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (426, 640), (375, 500), (612, 612))  # height, width
SIDES = (10, 300)


def draw(num_images: int) -> DetectionDataset:
    """Return a data set of random annotations.

    Image sizes and numbers of boxes (geometric) are as in COCO. The sides of boxes are log-uniform, and the
    frequencies of the classes differ strongly.

    Args:
        num_images: the number of images.
    """
    rng = np.random.default_rng(0)
    records = []
    for i in range(num_images):
        height, width = SIZES[rng.integers(len(SIZES))]
        count = rng.geometric(1 / (1 + OBJECTS_PER_IMAGE)) - 1
        sides = np.exp(rng.uniform(*np.log(SIDES), (count, 2))).clip(max=(width, height))
        corners = rng.uniform(0, 1, (count, 2)) * ((width, height) - sides)
        labels = rng.zipf(1.3, count) % NUM_CLASSES
        boxes = np.concatenate((corners, corners + sides), axis=1).astype(np.float32)
        area = sides.prod(axis=1).astype(np.float32)
        records.append(Record(Path(f"{i}.jpg"), i, width, height, boxes, labels, np.zeros(count, bool), area))
    return DetectionDataset(records, [str(k) for k in range(NUM_CLASSES)], range(NUM_CLASSES))


def run(*, images: int, cfg: str) -> dict:
    """Measure the seconds of a census with the config's anchors, assigner and image size, on all cores.

    Args:
        images: the number of images.
        cfg: the name or path of the config.
    """
    config, dataset = load_config(cfg), draw(images)
    started = time.perf_counter()
    census = build_census(config, dataset)
    seconds = time.perf_counter() - started
    row = {"name": "census", "seconds": seconds, "images_s": images / seconds, "ratio": census.ratio}
    return {
        "benchmark": "census",
        "cfg": Path(cfg).name,
        "images": images,
        "boxes": census.num_objects,
        "classes": NUM_CLASSES,
        "rows": [row],
    }
