"""The outputs of inference: COCO results, a CSV table, YOLO labels, annotated pictures and videos."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import cv2

from detector.core.drawing import draw_boxes
from detector.core.errors import UserError, one_line
from detector.core.files import WRITE_TEXT, csv_line, replacing, utf8_path, write_text
from detector.core.structures import Detections
from detector.data.formats.writers import format_line
from detector.data.images import write_image
from detector.deploy.inference.sources import Picture, Source
from detector.evaluation.coco_results import to_coco_results


class Sink(Protocol):
    """A writer of detections. It receives the pictures in order and does not store them."""

    def write(self, picture: Picture, detections: Detections) -> None:
        """Write the detections of a picture.

        Args:
            picture: the picture. All frames of a video follow each other.
            detections: the detections on the CPU, in pixels of the picture.

        Raises:
            UserError: the picture cannot be written.
        """

    def close(self) -> None:
        """Complete the files."""


class CocoResults:
    """Writes detections.json: COCO results without rounding.

    Each result also has its file_name, the name of its category and, in a video, its frame. The file gets its name in
    `close`.

    Args:
        folder: the folder of the file.
        class_names: the class name of each label.
        category_ids: the category id of each label.
    """

    def __init__(self, folder: Path, class_names: Sequence[str], category_ids: Sequence[int]):
        self.class_names = dict(zip(category_ids, class_names, strict=True))
        self.category_ids = category_ids
        self._open = ExitStack()
        temporary = self._open.enter_context(replacing(folder / "detections.json"))
        self._file = self._open.enter_context(temporary.open("w", **WRITE_TEXT))
        self._separator = "["

    def write(self, picture: Picture, detections: Detections) -> None:
        """Write the detections of a picture."""
        frame = {} if picture.frame is None else {"frame": picture.frame}
        for result in to_coco_results(picture.image_id, detections, self.category_ids):
            names = {"file_name": str(picture.source), "category": self.class_names[result["category_id"]]}
            self._file.write(f"{self._separator}\n{json.dumps(result | names | frame, allow_nan=False)}")
            self._separator = ","

    def close(self) -> None:
        """Complete the file, and rename it."""
        self._file.write("[]\n" if self._separator == "[" else "\n]\n")
        self._open.close()


class Table:
    """Writes detections.csv: a row for each detection.

    The numbers have all digits of fp32. The column `frame` is empty for an image file.

    Args:
        folder: the folder of the file.
        class_names: the class name of each label.
        category_ids: not used.
    """

    def __init__(self, folder: Path, class_names: Sequence[str], category_ids: Sequence[int]):
        self.class_names = class_names
        # line buffering: other programs can follow the file
        self._file = (folder / "detections.csv").open("w", newline="", buffering=1, **WRITE_TEXT)
        self._file.write(csv_line(("file", "frame", "class", "score", "x1", "y1", "x2", "y2")))

    def write(self, picture: Picture, detections: Detections) -> None:
        """Write the detections of a picture."""
        frame = "" if picture.frame is None else picture.frame
        fields = (detections.boxes, detections.scores, detections.labels)
        for box, score, label in zip(*(field.tolist() for field in fields), strict=True):
            numbers = (f"{number:.9g}" for number in (score, *box))
            self._file.write(csv_line((picture.source, frame, self.class_names[label], *numbers)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class YoloLabels:
    """Writes yolo/NAME.txt for each image file, and yolo/NAME/FRAME.txt for each frame.

    Each detection is a line `class cx cy w h score`, in fractions of the sides of the picture. A picture without
    detections has an empty file. yolo/classes.txt contains the class names in the order of their numbers.

    Args:
        folder: the folder of the folder yolo.
        class_names: the class name of each label.
        category_ids: not used.
    """

    def __init__(self, folder: Path, class_names: Sequence[str], category_ids: Sequence[int]):
        self.folder = folder / "yolo"
        self.folder.mkdir(exist_ok=True)
        lines = [f"{one_line(name)}\n" for name in class_names]  # a line break in a name would shift the later names
        write_text(self.folder / "classes.txt", "".join(lines))

    def write(self, picture: Picture, detections: Detections) -> None:
        """Write the detections of a picture."""
        height, width = picture.image.shape[:2]
        lines = []
        boxes, scores, labels = detections.boxes.numpy(), detections.scores.tolist(), detections.labels.tolist()
        for box, score, label in zip(boxes, scores, labels, strict=True):
            lines.append(f"{format_line(label, box, width, height)} {score:.9g}\n")
        path = self.folder / picture.source.name
        if picture.frame is not None:
            path.mkdir(exist_ok=True)
            path /= f"{picture.frame:06}"
        write_text(path.with_name(f"{path.name}.txt"), "".join(lines))

    def close(self) -> None:
        """Do nothing. Each file is complete after `write`."""


class Drawings:
    """Writes a copy of each picture with its boxes.

    An image file keeps its format if `write_image` supports it, and else becomes a PNG. Videos and cameras become
    NAME.mp4 (MPEG-4). MPEG-4 has no odd sides, so odd sides grow by a pixel.

    Args:
        folder: the folder of the files.
        class_names: the class name of each label.
    """

    def __init__(self, folder: Path, class_names: Sequence[str]):
        self.folder = folder
        self.class_names = class_names
        self._video: cv2.VideoWriter | None = None
        self._source: Source | None = None  # of the video

    def write(self, picture: Picture, detections: Detections) -> None:
        """Draw the detections, and write the picture."""
        if picture.source != self._source:
            self.close()
            self._source = picture.source
        boxes, scores, labels = detections.boxes.numpy(), detections.scores.numpy(), detections.labels.numpy()
        drawn = draw_boxes(picture.image, boxes, labels, self.class_names, scores)
        path = self.folder / picture.source.drawing
        if picture.frame is None:
            write_image(path, drawn)
            return
        height, width = drawn.shape[:2]
        drawn = cv2.copyMakeBorder(drawn, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._video is None:
            size = drawn.shape[1], drawn.shape[0]
            with utf8_path(path) as name:
                self._video = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*"mp4v"), picture.rate, size)
            if not self._video.isOpened():
                raise UserError(
                    f"{path}: the video cannot be written", "check the folder and the free space of the disk"
                )
        self._video.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Complete the current video."""
        if self._video is not None:
            self._video.release()
            self._video = None


FORMATS = {"coco": CocoResults, "csv": Table, "yolo": YoloLabels}
