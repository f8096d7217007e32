"""What is left of detections: COCO results, a table, YOLO labels, annotated pictures and videos."""

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
    """Takes picture after picture, in order, without keeping them; `close` makes its files whole."""

    def write(self, picture: Picture, found: Detections) -> None: ...

    def close(self) -> None: ...


class CocoResults:
    """detections.json: COCO results, nothing rounded, each with its file_name, its category's name and, in a video, its
    frame. Written beside and renamed by `close`."""

    def __init__(self, folder: Path, class_names: Sequence[str], category_ids: Sequence[int]):
        self.class_names = dict(zip(category_ids, class_names, strict=True))
        self.category_ids = category_ids
        self._open = ExitStack()
        temporary = self._open.enter_context(replacing(folder / "detections.json"))
        self._file = self._open.enter_context(temporary.open("w", **WRITE_TEXT))
        self._before = "["

    def write(self, picture: Picture, found: Detections) -> None:
        frame = {} if picture.frame is None else {"frame": picture.frame}
        for result in to_coco_results(picture.image_id, found, self.category_ids):
            names = {"file_name": str(picture.source), "category": self.class_names[result["category_id"]]}
            self._file.write(f"{self._before}\n{json.dumps(result | names | frame, allow_nan=False)}")
            self._before = ","

    def close(self) -> None:
        self._file.write("[]\n" if self._before == "[" else "\n]\n")
        self._open.close()


class Table:
    """detections.csv: a row a detection, numbers to a float32's last digit; frame is empty for an image file."""

    def __init__(self, folder: Path, class_names: Sequence[str], category_ids: Sequence[int]):
        self.class_names = class_names
        # line by line, so that a run can be followed
        self._file = (folder / "detections.csv").open("w", newline="", buffering=1, **WRITE_TEXT)
        self._file.write(csv_line(("file", "frame", "class", "score", "x1", "y1", "x2", "y2")))

    def write(self, picture: Picture, found: Detections) -> None:
        frame = "" if picture.frame is None else picture.frame
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
            numbers = (f"{number:.9g}" for number in (score, *box))
            self._file.write(csv_line((picture.source, frame, self.class_names[label], *numbers)))

    def close(self) -> None:
        self._file.close()


class YoloLabels:
    """yolo/NAME.txt, of a video yolo/NAME/FRAME.txt: a line `class cx cy w h score` a detection, in fractions of the
    picture's sides; a file for every picture. classes.txt has the classes' names in the order of their numbers."""

    def __init__(self, folder: Path, class_names: Sequence[str], category_ids: Sequence[int]):
        self.folder = folder / "yolo"
        self.folder.mkdir(exist_ok=True)
        lines = [f"{one_line(name)}\n" for name in class_names]  # a line break in a name would shift the numbers
        write_text(self.folder / "classes.txt", "".join(lines))

    def write(self, picture: Picture, found: Detections) -> None:
        height, width = picture.image.shape[:2]
        lines = []
        for box, score, label in zip(found.boxes.numpy(), found.scores.tolist(), found.labels.tolist(), strict=True):
            lines.append(f"{format_line(label, box, width, height)} {score:.9g}\n")
        path = self.folder / picture.source.name
        if picture.frame is not None:
            path.mkdir(exist_ok=True)
            path /= f"{picture.frame:06}"
        write_text(path.with_name(f"{path.name}.txt"), "".join(lines))

    def close(self) -> None:
        pass


class Drawings:
    """Each picture with its boxes, in its own format; of videos and cameras NAME.mp4 (MPEG-4), whose odd sides grow by
    a pixel, as the format has none."""

    def __init__(self, folder: Path, class_names: Sequence[str]):
        self.folder = folder
        self.class_names = class_names
        self._video: cv2.VideoWriter | None = None
        self._of: Source | None = None

    def write(self, picture: Picture, found: Detections) -> None:
        if picture.source != self._of:
            self.close()
            self._of = picture.source
        boxes, scores, labels = found.boxes.numpy(), found.scores.numpy(), found.labels.numpy()
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
                raise UserError(f"{path}: no video can be written there", "check the folder and the disk's space")
        self._video.write(cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        if self._video is not None:
            self._video.release()
            self._video = None


FORMATS = {"coco": CocoResults, "csv": Table, "yolo": YoloLabels}
