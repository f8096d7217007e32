"""The base class of the data sets of all formats: a list of records with class names."""

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
    """The annotations of an image.

    Attributes:
        path: the image file.
        image_id: the id of the image in the data set.
        width: the annotated width in pixels.
        height: the annotated height in pixels.
        boxes: (N, 4) float32 xyxy in pixels.
        labels: (N,) int64, 0..K-1.
        crowd: (N,) bool, true for a region that counts neither as an object nor as background.
        area: (N,) float32 in square pixels, as COCO defines it: the area of the segment, or of the box where the
            annotation has no area.
        upright: whether the annotations refer to the image as its EXIF orientation shows it (YOLO). Otherwise they
            refer to the stored pixels, or to the shown image where only the shown image has the annotated size.
        is_deep: whether the file has 16 bits per channel.
    """

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
    """Combine the annotations of a record with an image of the same size.

    Args:
        record: the annotations.
        image: (H, W, 3) uint8 RGB.
        original_size: (height, width) of the image before it was resized, in pixels.
    """
    return Sample(image, record.boxes, record.labels, record.crowd, record.image_id, record.path.name, original_size)


class DetectionDataset(Sequence[Sample]):
    """Records in a fixed order.

    Args:
        records: the annotations of each image.
        class_names: the name of each class.
        category_ids: the category id of each class in the data set.
        bits: the number of bits that the values of 16-bit images use (see `read_image`).
        decided: the parameters of the data set that were `auto`, with the values that its files decided.
    """

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

    def __getitem__(self, index: int) -> Sample:  # ty: ignore[incompatible-method-override]  (no caller uses slices)
        record = self.records[index]
        size = (record.height, record.width)
        image = read_image(record.path, upright=record.upright, bits=self.bits)
        if not record.upright and image.shape[:2] == size[::-1] != size:  # the annotations may refer to the shown image
            image = read_image(record.path, upright=True, bits=self.bits)
        if image.shape[:2] != size:
            raise UserError(
                f"{record.path}: the image has {image.shape[1]}x{image.shape[0]} pixels, but its annotated size is "
                f"{record.width}x{record.height}",
                "correct the image or its annotated size",
            )
        return make_sample(record, image, size)

    def blank(self, index: int) -> Sample:
        """Return an empty image of the annotated size that replaces an unreadable image."""
        record = self.records[index]
        image = np.full((record.height, record.width, 3), PADDING_COLOR, dtype=np.uint8)
        nothing = np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool)
        return Sample(image, *nothing, record.image_id, record.path.name, image.shape[:2])

    def subset(self, indices: Iterable[int]) -> "DetectionDataset":
        """Return a data set of the images at `indices`."""
        records = [self.records[i] for i in indices]
        return DetectionDataset(records, self.class_names, self.category_ids, self.bits, self.decided)

    def evenly(self, count: int) -> "DetectionDataset":
        """Return `count` images that are evenly spread over the order, or all images if there are fewer."""
        count = min(count, len(self))
        return self.subset(i * len(self) // count for i in range(count))

    def class_counts(self) -> np.ndarray:
        """Return the number of objects of each class without crowds, (K,) int64."""
        labels = self.labels_by_image()
        return np.bincount(np.concatenate(labels, dtype=np.int64) if labels else [], minlength=len(self.class_names))

    def labels_by_image(self) -> list[np.ndarray]:
        """Return the class labels of each image without crowds, (N,) int64."""
        return [record.labels[~record.crowd] for record in self.records]

    def describe(self) -> str:
        """Return the numbers of images and of objects of each class in one line."""
        counts = self.class_counts()
        order = np.argsort(-counts, kind="stable")
        classes = [f"{self.class_names[k]} {counts[k]}" for k in order]
        shown = classes if len(classes) <= 10 else [*classes[:5], "...", *classes[-4:]]
        empty = sum(len(r.boxes) == 0 for r in self.records)
        return f"{len(self)} images ({empty} without objects), {counts.sum()} objects: {', '.join(shown)}"

    def ground_truth(self) -> dict:
        """Return a COCO dictionary with the image and category ids of the data set. Annotation ids count from 1."""
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
