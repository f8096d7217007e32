"""Examples as pictures of the page: a JPEG of limited size, and the boxes over it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from detector.core.errors import UserError
from detector.data.dataset import DetectionDataset
from detector.lab.report.examples import Box, Example

LONG_SIDES = (800, 640, 480, 320, 200)  # pixels, tried in this order
QUALITY = 80


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the page: JPEG as base64, width and height in pixels, and the example with boxes in its pixels."""

    name: str
    data: str
    width: int
    height: int
    example: Example


def make_pictures(dataset: DetectionDataset, examples: Sequence[Example], max_bytes: int) -> list[Picture]:
    """Read the images of the examples, and compress them until each has at most `max_bytes` as base64.

    Raises:
        UserError: an image cannot be read.
    """
    return [_picture(dataset, example, max_bytes) for example in examples]


def _picture(dataset: DetectionDataset, example: Example, max_bytes: int) -> Picture:
    image = dataset[example.index].image
    for long_side in LONG_SIDES:
        scale = min(1.0, long_side / max(image.shape[:2]))
        data = base64.b64encode(_jpeg(image, scale)).decode()
        if len(data) <= max_bytes:
            break
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    scaled = replace(example, boxes=[_scaled(box, scale) for box in example.boxes])
    return Picture(dataset.records[example.index].path.name, data, width, height, scaled)


def _jpeg(image: np.ndarray, scale: float) -> bytes:
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    written, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not written:
        raise UserError(f"{image.shape[1]}x{image.shape[0]} pixels do not fit a JPEG")
    return data.tobytes()


def _scaled(box: Box, scale: float) -> Box:
    return replace(box, x=box.x * scale, y=box.y * scale, width=box.width * scale, height=box.height * scale)
