"""Findings: the problems of a data set. Readers report them, training logs them, and the data check shows them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from detector.core.errors import UserError, one_line

Invalid = Literal["error", "skip"]
NUM_EXAMPLES = 3
NO_ACTION = "no action is needed"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding.

    Attributes:
        what: the affected entries, in the plural.
        becomes: the result of the finding in training. For an invalid entry: the result where `data.invalid` is skip.
        remedy: the action that corrects the entries, as an imperative.
        level: "note" never stops a training. "invalid" stops it unless `data.invalid` is skip. "fatal" stops it always,
            except for unreadable images within `faults.max_unreadable`.
    """

    what: str
    becomes: str
    remedy: str
    level: Literal["note", "invalid", "fatal"] = "note"


KINDS: dict[str, Kind] = {
    # invalid entries
    "annotation_file": Kind("annotation files that cannot be used", "left out", "correct the file", "invalid"),
    "object_malformed": Kind("malformed objects in annotation files", "left out", "correct the object", "invalid"),
    "image_missing": Kind("missing images", "left out", "check the images folder", "invalid"),
    "image_outside": Kind(
        "images outside the images folder",
        "left out",
        "copy the image into the images folder and correct its path in the annotations",
        "invalid",
    ),
    "image_twice": Kind(
        "images that are listed twice", "the later entry is left out", "remove one of the entries", "invalid"
    ),
    "image_unlike": Kind(
        "images whose size differs from the annotated size",
        "left out",
        "correct the image or its annotated size",
        "invalid",
    ),
    "label_orphan": Kind(
        "label files without an image",
        "left out",
        "add the image in a readable format, or remove the label file",
        "invalid",
    ),
    "row_ambiguous": Kind(
        "label lines that may be polygons, or boxes with keypoints or a score",
        "left out",
        "declare kpt_shape in data.yaml, or set rows=polygon or rows=box in the section of the data set",
        "invalid",
    ),
    "image_unreadable": Kind("images that cannot be read", "left out", "replace or remove the image", "invalid"),
    "annotation_orphan": Kind("annotations whose image is not listed", "left out", "correct the image_id", "invalid"),
    "category_unknown": Kind(
        "annotations whose category is not listed",
        "left out",
        "add the category, or correct the category_id",
        "invalid",
    ),
    "class_unknown": Kind(
        "annotations of a class that the training set does not have",
        "left out",
        "annotate both splits with the same classes",
        "invalid",
    ),
    "number": Kind(
        "annotations with a malformed area, iscrowd or ignore",
        "left out",
        "write a number of at least 0, or null",
        "invalid",
    ),
    "box_malformed": Kind("boxes that are not four finite numbers", "left out", "correct the box", "invalid"),
    "box_empty": Kind("boxes without area", "left out", "correct the box", "invalid"),
    "box_outside": Kind("boxes outside their image", "left out", "correct the box", "invalid"),
    "box_corners": Kind(
        "boxes that seem to have another convention than their format, for example corners x1, y1, x2, y2",
        "used as written",
        "write all boxes in the convention of the format",
        "invalid",
    ),
    "box_fractions": Kind(
        "boxes that seem to be fractions of their image instead of pixels",
        "used as written",
        "multiply all boxes by the width and height of their image",
        "invalid",
    ),
    # entries that do not stop a training
    "annotation_lost": Kind(
        "annotations of images that are left out", "left out", "correct the images that are left out"
    ),
    "box_clipped": Kind("boxes that extend beyond the edge of their image", "clipped", "correct the box"),
    "box_small": Kind(
        "boxes too small for any anchor at the training size",
        "matched poorly or not at all",
        "raise data.short_side or lower model.head.sizes (`detector census` suggests values)",
    ),
    "annotation_id": Kind("annotations with a missing, repeated or zero id", "numbered again", NO_ACTION),
    "category_ids": Kind("category ids that have gaps or do not begin at 1", "kept in the results", NO_ACTION),
    "area": Kind("annotations without area", "the area of the box is used", NO_ACTION),
    "crowd": Kind("annotations without iscrowd", "used as single objects", NO_ACTION),
    "image_empty": Kind("images without objects", "used as background unless data.keep_empty=false", NO_ACTION),
    "class_empty": Kind(
        "classes without objects", "kept, but not learned", "annotate objects of the class, or remove the class"
    ),
    "class_alike": Kind(
        "classes whose names differ only in spaces or in upper and lower case",
        "used as separate classes",
        "give both classes the same name if they mean the same",
    ),
    "category_root": Kind(
        "categories without objects that repeat a name or are the supercategory of all others", "left out", NO_ACTION
    ),
    "count_differs": Kind(
        "class counts that differ from the number of class names", "the class names are used", "correct the count"
    ),
    "key_unknown": Kind("keys that the reader does not use", "ignored", "check the spelling of the key"),
    "box_continuous": Kind(
        "boxes that are not integer pixel numbers from 1, as VOC defines them",
        "all boxes are read as continuous coordinates",
        "set one_based=true in the section of the data set if the coordinates are pixel numbers from 1",
    ),
    "box_one_based": Kind(
        "boxes with decimals or edges at 0 in a data set of pixel numbers from 1",
        "all boxes are read as pixel numbers from 1",
        "set one_based=false in the section of the data set if the coordinates are continuous",
    ),
    "image_ambiguous": Kind(
        "annotation files that match several images",
        "used with the image that has the name of the annotation file",
        "give each image the name of its annotation file, and each name to one image only",
    ),
    "image_partly": Kind(
        "images in which some classes are not marked everywhere (LVIS)",
        "used as fully marked, so that unmarked objects count as background",
        "remove the images if their unmarked objects matter",
    ),
    "row_polygon": Kind(
        "label lines with more than four coordinates",
        "read as polygons",
        "set rows=box in the section of the data set if the lines are boxes with keypoints or a score",
    ),
    "image_twins": Kind("images that share a label file with another image", "all used", "remove the other copies"),
    "image_renamed": Kind(
        "images whose file name differs from the annotated name in separators or in upper and lower case",
        "used",
        NO_ACTION,
    ),
    "image_size": Kind("images without an annotated size", "used with the size of the file", NO_ACTION),
    "image_unlabelled": Kind(
        "images without a label file", "used as images without objects", "check the folder of the labels"
    ),
    "image_unlisted": Kind("images that no annotation names", "left out", "annotate the images to use them"),
    "image_format": Kind(
        "images in a format that cannot be read",
        "left out",
        "convert the images to JPEG or PNG (for HEIC: install the extra `heic`)",
    ),
    "annotation_unlisted": Kind(
        "annotation files without an image in this data set",
        "left out",
        "no action is needed if the files belong to another split",
    ),
    "file_other": Kind("files that are neither images nor annotations", "ignored", NO_ACTION),
    "link_broken": Kind("broken links", "ignored", "restore the target of the link, or remove the link"),
    "image_deep": Kind(
        "images with 16 bits per channel",
        "scaled to 8 bits by the range of the data set",
        "set data.bits if the values have another range",
    ),
    "image_crowded": Kind(
        "images with more objects than an evaluation counts",
        "the surplus objects count as missed",
        "raise evaluation.max_detections",
    ),
    # kinds that only the data check reports
    "object_twice": Kind(
        "pairs of boxes of a class that may mark the same object",
        "both boxes are used",
        "remove one of the boxes if there is only one object",
    ),
    "object_conflict": Kind(
        "pairs of boxes of two classes that may mark the same object",
        "both boxes are used",
        "remove one of the boxes if there is only one object",
    ),
    "data_set": Kind("data sets that cannot be read", "not used", "correct the data set as the example says", "fatal"),
    "image_damaged": Kind(
        "images that cannot be decoded", "stop the training when they are read", "replace or remove the image", "fatal"
    ),
    "image_misnamed": Kind("images whose suffix names another format", "read by their content", "rename the file"),
    "image_turned": Kind(
        "images with an EXIF orientation",
        "rotated for YOLO labels, or if only the rotated image has the annotated size; otherwise read as stored",
        "store and annotate the images upright",
    ),
    "image_grey": Kind("gray images", "read as three equal channels", NO_ACTION),
    "image_alpha": Kind("images with transparency", "used without transparency", NO_ACTION),
    "image_cmyk": Kind("CMYK images", "converted to RGB", NO_ACTION),
    "image_same": Kind("images with the same bytes as another image", "all used", "remove the copies"),
    "image_alike": Kind(
        "validation images that look like a training image",
        "used, which can make the scores too high",
        "compare the two images, and put images of the same scene into the same split",
    ),
    "image_leaked": Kind(
        "validation images that the training set contains too",
        "used, which makes the scores too high",
        "remove the image from one of the splits",
    ),
}


@dataclass(slots=True)
class Finding:
    """The number of entries of a kind, and the first examples."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


class Findings:
    """The findings of a data set by kind (a key of KINDS).

    Args:
        invalid: "error" raises UserError for the first invalid entry. "skip" counts invalid entries, and the reader
            leaves them out.
    """

    def __init__(self, invalid: Invalid = "error"):
        self.invalid = invalid
        self.by_kind: dict[str, Finding] = {}

    def add(self, kind: str, indices: Sequence[int] | np.ndarray, describe: Callable[[int], str]) -> None:
        """Add entries of a kind.

        Args:
            kind: a key of KINDS.
            indices: the indices of the entries.
            describe: returns the location and the problem of the entry with an index.

        Raises:
            UserError: the kind is invalid, and `invalid` is "error".
        """
        if not len(indices):
            return
        if KINDS[kind].level == "invalid" and self.invalid == "error":
            raise UserError(
                describe(indices[0]),
                f"{KINDS[kind].remedy}, or set data.invalid=skip ({len(indices)} of this kind)",
            )
        finding = self.by_kind.setdefault(kind, Finding())
        finding.count += len(indices)
        for index in indices[: NUM_EXAMPLES - len(finding.examples)]:
            finding.examples.append(one_line(describe(index)))

    def count(self, kind: str) -> int:
        """Return the number of entries of a kind."""
        return self.by_kind[kind].count if kind in self.by_kind else 0

    def lines(self) -> list[str]:
        """Return a line for each kind: the entries, their number, the result in training, and the first example."""
        return [
            f"{KINDS[kind].what}: {finding.count}, {KINDS[kind].becomes} (first: {finding.examples[0]})"
            for kind, finding in self.by_kind.items()
        ]
