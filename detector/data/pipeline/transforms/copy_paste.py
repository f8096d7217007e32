"""The transform `copy_paste`, which adds objects of another image."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from detector.core.errors import UserError
from detector.core.structures import Sample
from detector.core.validation import PositiveFloat, PositiveInt, UnitFloat, in_order
from detector.data.pipeline.transforms.base import TRANSFORMS, OccasionalTransform, TransformContext
from detector.data.pipeline.transforms.pasting import move, paste, with_objects
from detector.data.pipeline.transforms.resize import resize

TRIES = 50  # positions of an object


@TRANSFORMS.register("copy_paste")
class CopyPaste(OccasionalTransform):
    """A transform that pastes objects of another image on the background (Dwibedi et al. 2017, Ghiasi et al. 2021).

    The data sets have no masks, so an object is copied with all pixels of its box. Around the box, the copied image
    fades out over a margin, so that its edge is no feature (Dwibedi et al. 2017). Other objects inside the box are
    copied with it. Other objects that are partly inside the box or its margin become ignored regions.

    An object of a class with n objects in the training set has the weight n^-balance. An image is drawn with a
    probability that is proportional to the total weight of its objects. It can be the image of the sample. From this
    image, 1 to `max_objects` objects are drawn with these weights. Ignored regions are not drawn. Objects closer than 1
    pixel to the border of their image are not drawn, because they may be cut off.

    A copy is resized and gets a random position, where its box is inside the image. The overlap of the box and its
    margin with every box of the image and of earlier copies is at most `max_overlap` times the smaller area of both
    boxes. After 50 positions with more overlap, the copy is left out. So a copy covers at most the fraction
    `max_overlap` of an object, and all boxes of the sample are kept.

    When to use: where objects are rare, or where one class is rare (`balance`). In crowded images, large objects often
    do not fit.

    Args:
        labels_by_image: the class labels of each image of the training set, without ignored regions.
        probability: the probability that a sample is changed.
        until: the fraction of the run after which no sample is changed.
        max_objects: the maximum number of objects that are copied to an image.
        balance: 0 draws all objects equally often. 1 draws all classes equally often, for the first object of an image.
        scale: the range of the zoom factor of a copy.
        max_overlap: the maximum overlap with another box, as a fraction of the smaller area of both boxes.
        feather: the width of the margin, as a fraction of the shorter side of the box.

    Raises:
        UserError: no image has an object.
    """

    def __init__(
        self,
        labels_by_image: Sequence[np.ndarray],
        *,
        probability: UnitFloat = 0.5,
        until: UnitFloat = 0.9,
        max_objects: PositiveInt = 3,
        balance: UnitFloat = 0.0,
        scale: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(in_order)] = (0.8, 1.25),
        max_overlap: UnitFloat = 0.2,
        feather: UnitFloat = 0.1,
    ):
        super().__init__(probability, until)
        labels = np.concatenate(labels_by_image)
        if not len(labels):
            raise UserError(
                "data.transforms: copy_paste needs objects, but no image has an object",
                "remove copy_paste from data.transforms",
            )
        self.class_weights = np.maximum(np.bincount(labels), 1.0) ** -balance
        images = np.repeat(np.arange(len(labels_by_image)), [len(row) for row in labels_by_image])
        self.image_ends = np.bincount(images, self.class_weights[labels], len(labels_by_image)).cumsum()
        self.max_objects = max_objects
        self.scale = scale
        self.max_overlap = max_overlap
        self.feather = feather

    def change(self, sample: Sample, context: TransformContext) -> Sample:
        """Return the sample with objects of a drawn sample."""
        rng = context.rng
        point = rng.random() * self.image_ends[-1]
        other = context.draw(int(np.searchsorted(self.image_ends[:-1], point, side="right")))
        image, parts = sample.image.copy(), [sample]
        for index in self._choose(other, rng):
            copy = self._cut(other, index, rng.uniform(*self.scale))
            boxes = np.concatenate([part.boxes for part in parts])
            position = self._position(copy, boxes, image.shape[:2], rng)
            if position is not None:
                paste(image, copy.image, position, _opacity(copy, self.feather))
                parts.append(move(copy, position, (0, 0, *image.shape[1::-1])))
        return with_objects(sample, image, parts)

    def _choose(self, other: Sample, rng: np.random.Generator) -> np.ndarray:
        """Draw the objects that are copied, without replacement."""
        height, width = other.image.shape[:2]
        x1, y1, x2, y2 = other.boxes.T
        is_complete = (x1 >= 1) & (y1 >= 1) & (x2 <= width - 1) & (y2 <= height - 1) & (x2 > x1) & (y2 > y1)
        candidates = np.flatnonzero(is_complete & ~other.ignore)
        count = min(int(rng.integers(1, self.max_objects + 1)), len(candidates))
        weights = self.class_weights[other.labels[candidates]]
        return rng.choice(candidates, count, replace=False, p=weights / weights.sum()) if count else candidates

    def _cut(self, other: Sample, index: int, zoom: float) -> Sample:
        """Return an object with its margin as a resized sample. The first box is the box of this object."""
        box = other.boxes[index]
        margin = self.feather * (box[2:] - box[:2]).min()
        x1, y1 = np.maximum(np.floor(box[:2] - margin), 0).astype(int)
        x2, y2 = np.ceil(box[2:] + margin).astype(int)  # beyond the image, the slice ends at its border
        is_complete = ((other.boxes[:, :2] >= box[:2]) & (other.boxes[:, 2:] <= box[2:])).all(axis=1)
        order = np.r_[index, np.delete(np.arange(len(other.boxes)), index)]
        ordered = replace(
            other,
            image=other.image[y1:y2, x1:x2],
            boxes=other.boxes[order],
            labels=other.labels[order],
            ignore=(other.ignore | ~is_complete)[order],
        )
        copy = move(ordered, (-x1, -y1), (0, 0, x2 - x1, y2 - y1))
        return resize(copy, *(max(1, round(side * zoom)) for side in copy.image.shape[:2]))

    def _position(
        self, copy: Sample, boxes: np.ndarray, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[int, int] | None:
        """Draw a position (x, y) of the copy with the box inside the image, or return None where no position fits."""
        box = copy.boxes[0]
        low = -np.floor(box[:2])
        high = size[::-1] - np.ceil(box[2:])
        if (low > high).any():
            return None
        tries = rng.integers(low, high + 1, size=(TRIES, 2))
        corners = tries[:, None]  # (TRIES, 1, 2), the upper left corner of the margin
        sides = np.minimum(corners + copy.image.shape[1::-1], boxes[:, 2:]) - np.maximum(corners, boxes[:, :2])
        smaller = np.minimum(_areas(box), _areas(boxes))
        fits = (sides.clip(0).prod(axis=2) <= self.max_overlap * smaller).all(axis=1)
        x, y = tries[fits.argmax()].tolist()
        return (x, y) if fits.any() else None


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)


def _opacity(copy: Sample, feather: float) -> np.ndarray:
    """Return the weight (h, w, 1) of the pixels of a copy: 1 in its box, and falling to 0 over the margin."""
    box = copy.boxes[0]
    margin = feather * (box[2:] - box[:2]).min() + 1
    across, down = (
        np.maximum(np.floor(low) - pixels, pixels - np.ceil(high) + 1).clip(0)
        for low, high, pixels in zip(box[:2], box[2:], map(np.arange, copy.image.shape[1::-1]), strict=True)
    )
    return (1 - np.maximum(across, down[:, None]) / margin).clip(0)[..., None]
