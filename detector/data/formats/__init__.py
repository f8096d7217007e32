"""The annotation formats, a file for each format. Importing this package registers their data sets."""

from detector.data.formats import coco, scenes, voc, yolo  # noqa: F401
