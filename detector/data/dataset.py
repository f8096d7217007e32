"""What every data set is, whatever its format: a list of records with class names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.core.errors import UserError
from detector.core.registry import Registry
from detector.core.structures import PADDING_COLOR, Sample
from detector.data.images import FULL_BITS, read_image


@dataclass(frozen=True, slots=True)
class Record:
    """The annotations of one image: size in pixels as annotated; boxes (N, 4) float32 xyxy; labels (N,) int64, 0..K-1;
    crowd (N,) bool; area (N,) float32, as COCO counts it (the segment's where the file says so, else the box's).
    upright: annotated on the image as its EXIF orientation shows it (YOLO); else on the stored pixels, or where only
    the turned image has the annotated size, on that. is_deep: the file has 16 bits a colour."""

    path: Path
    image_id: int
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    upright: bool = False
    is_deep: bool = False


def make_sample(record: Record, image: np.ndarray, original_size: tuple[int, int]) -> Sample:
    """The record's annotations on an image that has their size."""
    return Sample(image, record.boxes, record.labels, record.crowd, record.image_id, record.path.name, original_size)


class DetectionDataset(Sequence[Sample]):
    """Records in a fixed order. `class_names[k]` and `category_ids[k]` are class k's name and the data set's own id.
    `bits`: how many bits the values of 16-bit images use (see `read_image`). `decided`: the parameters of the data
    set's own section that were `auto`, with the values that its files decided."""

    def __init__(
        self,
        records: list[Record],
        class_names: Sequence[str],
        category_ids: Sequence[int],
        bits: int = FULL_BITS,
        decided: Mapping[str, Any] | None = None,
    ):
        self.records = records
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        self.bits = bits
        self.decided = dict(decided or {})

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:  # ty: ignore[incompatible-method-override]  (slices are not asked for)
        record = self.records[index]
        size = (record.height, record.width)
        image = read_image(record.path, upright=record.upright, bits=self.bits)
        if not record.upright and image.shape[:2] == size[::-1] != size:  # annotated as it is shown, perhaps
            image = read_image(record.path, upright=True, bits=self.bits)
        if image.shape[:2] != size:
            raise UserError(
                f"{record.path}: {image.shape[1]}x{image.shape[0]} pixels, its annotations say "
                f"{record.width}x{record.height}",
                "correct the one that is wrong",
            )
        return make_sample(record, image, size)

    def blank(self, index: int) -> Sample:
        """An empty picture in the place of one that cannot be read."""
        record = self.records[index]
        image = np.full((record.height, record.width, 3), PADDING_COLOR, dtype=np.uint8)
        nothing = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool)
        return Sample(image, *nothing, record.image_id, record.path.name, image.shape[:2])

    def subset(self, indices: Iterable[int]) -> "DetectionDataset":
        records = [self.records[i] for i in indices]
        return DetectionDataset(records, self.class_names, self.category_ids, self.bits, self.decided)

    def evenly(self, count: int) -> "DetectionDataset":
        """`count` of the images, evenly spread over the order; all where there are not so many."""
        count = min(count, len(self))
        return self.subset(i * len(self) // count for i in range(count))

    def class_counts(self) -> np.ndarray:
        """(K,) int64: objects of each class, crowds left out."""
        labels = self.labels_by_image()
        return np.bincount(np.concatenate(labels, dtype=np.int64) if labels else [], minlength=len(self.class_names))

    def labels_by_image(self) -> list[np.ndarray]:
        """Each image's class labels, (N,) int64, crowds left out."""
        return [record.labels[~record.crowd] for record in self.records]

    def describe(self) -> str:
        """Its size and its classes' imbalance in one line."""
        counts = self.class_counts()
        order = np.argsort(-counts, kind="stable")
        classes = [f"{self.class_names[k]} {counts[k]}" for k in order]
        shown = classes if len(classes) <= 10 else [*classes[:5], "...", *classes[-4:]]
        empty = sum(len(r.boxes) == 0 for r in self.records)
        return f"{len(self)} images ({empty} without objects), {counts.sum()} objects: {', '.join(shown)}"

    def ground_truth(self) -> dict:
        """A COCO dictionary with the data set's own image and category ids; annotation ids count from 1."""
        images = [
            {"id": r.image_id, "file_name": r.path.name, "width": r.width, "height": r.height} for r in self.records
        ]
        annotations = []
        for record in self.records:
            for (x1, y1, x2, y2), label, crowd, area in zip(
                record.boxes.astype(np.float64), record.labels, record.crowd, record.area, strict=True
            ):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": record.image_id,
                        "category_id": self.category_ids[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": float(area),
                        "iscrowd": int(crowd),
                    }
                )
        categories = [{"id": i, "name": n} for i, n in zip(self.category_ids, self.class_names, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}


DATASETS: Registry[DetectionDataset] = Registry("data set")
