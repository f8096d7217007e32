"""What is wrong or odd with a data set, and what becomes of it: one list that readers fill, training announces and the
data check shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from detector.core.errors import UserError, one_line

Invalid = Literal["error", "skip"]
NUM_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """what: the entries concerned, in the plural. becomes: what training does with them (the invalid ones where
    `data.invalid` is skip). remedy: what to do. level: a note; invalid, which stops a training unless
    `data.invalid` is skip; or fatal, which stops it in any case (but see `faults.max_unreadable`)."""

    what: str
    becomes: str
    remedy: str
    level: Literal["note", "invalid", "fatal"] = "note"


KINDS: dict[str, Kind] = {
    # entries that cannot be meant
    "annotation_file": Kind("annotation files that cannot be used", "left out", "correct the file", "invalid"),
    "object_malformed": Kind("malformed objects of label files", "left out", "correct the object", "invalid"),
    "image_missing": Kind("images that are not there", "left out", "check the images folder", "invalid"),
    "image_outside": Kind(
        "images outside the images folder",
        "left out",
        "copy the image into the folder and give its name there",
        "invalid",
    ),
    "image_twice": Kind("images listed twice", "the later entry left out", "remove one of the entries", "invalid"),
    "image_unlike": Kind(
        "images of another size than annotated", "left out", "correct the image or its annotated size", "invalid"
    ),
    "label_orphan": Kind(
        "files of labels without an image",
        "left out",
        "give each its image, in a format that can be read, or remove the file",
        "invalid",
    ),
    "row_ambiguous": Kind(
        "lines of labels that may be polygons, or boxes with keypoints or a score behind them",
        "left out",
        "declare kpt_shape in the data.yaml, or set rows=polygon or rows=box in the data set's section",
        "invalid",
    ),
    "image_unreadable": Kind("images that cannot be read", "left out", "replace or remove the image", "invalid"),
    "annotation_orphan": Kind("annotations of no listed image", "left out", "correct their image_id", "invalid"),
    "category_unknown": Kind("annotations of no listed category", "left out", "add the category", "invalid"),
    "class_unknown": Kind(
        "annotations of a class that the training set lacks",
        "left out",
        "annotate both splits with the same classes",
        "invalid",
    ),
    "number": Kind(
        "annotations with a malformed area or iscrowd", "left out", "write a number from 0 on, or null", "invalid"
    ),
    "box_malformed": Kind("boxes that are not four finite numbers", "left out", "correct the box", "invalid"),
    "box_empty": Kind("boxes without area", "left out", "correct the box", "invalid"),
    "box_outside": Kind("boxes outside their image", "left out", "correct the box", "invalid"),
    "box_corners": Kind(
        "boxes that look like another convention than their format's, as corners x1, y1, x2, y2 would",
        "taken as written",
        "write all boxes as the format defines them",
        "invalid",
    ),
    "box_fractions": Kind(
        "boxes that look like fractions of their image where pixels belong",
        "taken as written",
        "multiply all boxes by the width and height of their image",
        "invalid",
    ),
    # entries that training can do with
    "annotation_lost": Kind("annotations of images that are left out", "left out with them", "see the images"),
    "box_clipped": Kind("boxes that reach over their image's edge", "clipped", "correct the box"),
    "box_small": Kind(
        "boxes too small for any anchor at the training size",
        "matched poorly or not at all",
        "raise data.short_side or lower model.head.sizes (`detector census` suggests some)",
    ),
    "annotation_id": Kind("annotations with a missing, repeated or zero id", "numbered anew", "nothing need be done"),
    "category_ids": Kind("category ids that leave gaps or begin at 0", "kept in results", "nothing need be done"),
    "area": Kind("annotations without area", "that of the box", "nothing need be done"),
    "crowd": Kind("annotations without iscrowd", "taken as single objects", "nothing need be done"),
    "image_empty": Kind(
        "images without objects", "trained as background unless data.keep_empty=false", "nothing need be done"
    ),
    "class_empty": Kind("classes without objects", "kept, and not learned", "annotate objects of them, or remove them"),
    "class_alike": Kind(
        "classes whose names differ in blanks or upper and lower case alone",
        "kept apart",
        "give both the same name if they mean the same",
    ),
    "category_root": Kind(
        "categories without objects that repeat a name or are the supercategory of all others",
        "left out",
        "nothing need be done",
    ),
    "count_differs": Kind("numbers of classes that contradict the names", "the names count", "correct the number"),
    "key_unknown": Kind("keys that are not used", "passed over", "nothing need be done if they mean nothing to you"),
    "box_continuous": Kind(
        "boxes that do not count whole pixels from 1, as VOC does",
        "read as continuous coordinates, which one_based=true in the data set's section changes",
        "set one_based=true if the coordinates do count from 1",
    ),
    "box_one_based": Kind(
        "boxes with decimals or edges at 0 in a set that counts whole pixels from 1",
        "read as counted from 1, which one_based=false in the data set's section changes",
        "set one_based=false if the coordinates are continuous",
    ),
    "image_ambiguous": Kind(
        "annotation files that could mean more than one image",
        "matched to the image with the file's own name",
        "give each image and its file the same name, and only those",
    ),
    "image_partly": Kind(
        "images in which some classes are not marked everywhere (LVIS)",
        "taken as marked everywhere, so that unmarked objects count as background",
        "leave these images out if that matters",
    ),
    "row_polygon": Kind(
        "lines of labels with more than four coordinates",
        "read as polygons, which rows=box in the data set's section changes",
        "set rows=box if they are boxes with keypoints or a score behind them",
    ),
    "image_twins": Kind(
        "images that share a file of labels with another", "used, all of them", "remove the copies in other formats"
    ),
    "image_renamed": Kind(
        "images whose file name differs from the annotated one in separators or upper and lower case",
        "used",
        "nothing need be done",
    ),
    "image_size": Kind("images without an annotated size", "used with the file's own size", "nothing need be done"),
    "image_unlabelled": Kind(
        "images without a file of labels", "taken as images without objects", "check where their labels are"
    ),
    "image_unlisted": Kind("images that no annotation names", "left out", "annotate them if they should be used"),
    "image_format": Kind(
        "images of a format that is not read",
        "left out",
        "convert them to JPEG or PNG (HEIC: install the extra `heic`)",
    ),
    "annotation_unlisted": Kind(
        "annotation files of no image of this set",
        "left out",
        "nothing need be done if they belong to another split",
    ),
    "file_other": Kind("files that are neither images nor annotations", "passed over", "nothing need be done"),
    "link_broken": Kind("links that lead nowhere", "passed over", "restore what they point to, or remove them"),
    "image_deep": Kind(
        "images of 16 bits a colour",
        "scaled to 8 bits by the range of the whole set, which data.bits changes",
        "set data.bits if the range is another",
    ),
    "image_crowded": Kind(
        "images with more objects than an evaluation counts",
        "the surplus counts as missed",
        "raise evaluation.max_detections",
    ),
    # seen by the data check alone
    "object_twice": Kind("objects that seem to be marked twice", "kept, both of them", "remove one of the two"),
    "object_conflict": Kind(
        "objects that seem to be marked as two classes", "kept, both of them", "remove one of the two"
    ),
    "data_set": Kind("data sets that cannot be read", "nothing", "correct what is named", "fatal"),
    "image_damaged": Kind(
        "images that cannot be decoded", "stop the training when they come up", "replace or remove the image", "fatal"
    ),
    "image_misnamed": Kind("images whose suffix names another format", "read by their content", "rename the file"),
    "image_turned": Kind(
        "images that a camera marked as turned (EXIF)",
        "turned if the labels are YOLO's or only that gives the annotated size, else read as stored",
        "annotate and store them upright",
    ),
    "image_grey": Kind("grey images", "read as three equal channels", "nothing need be done"),
    "image_alpha": Kind("images with transparency", "transparency dropped", "nothing need be done"),
    "image_cmyk": Kind("CMYK images", "converted to RGB", "nothing need be done"),
    "image_same": Kind("images with the same bytes as another", "kept, all of them", "remove the copies"),
    "image_alike": Kind(
        "images of the validation set that look like one of the training set",
        "kept: the scores are too good",
        "look at both; where they show the same scene, keep them in one set",
    ),
    "image_leaked": Kind(
        "images of the validation set that the training set has too",
        "kept: the scores are too good",
        "remove them from one of the sets",
    ),
}


@dataclass(slots=True)
class Finding:
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Findings:
    """Counts and first examples by kind, of KINDS.

    invalid: what an invalid entry does. "error": UserError that names the first one; "skip": it is counted, and who
    reports it leaves it out.
    """

    def __init__(self, invalid: Invalid = "error"):
        self.invalid = invalid
        self.found: dict[str, Finding] = {}

    def add(self, kind: str, which: Sequence[int] | np.ndarray, describe: Callable[[int], str]) -> None:
        """The entries `which` are of this kind; `describe` says of one of them what is wrong and where."""
        if not len(which):
            return
        if KINDS[kind].level == "invalid" and self.invalid == "error":
            raise UserError(
                describe(which[0]), f"{KINDS[kind].remedy}, or set data.invalid=skip ({len(which)} such in all)"
            )
        finding = self.found.setdefault(kind, Finding())
        finding.count += len(which)
        for index in which[: NUM_EXAMPLES - len(finding.examples)]:
            finding.examples.append(one_line(describe(index)))

    def count(self, kind: str) -> int:
        return self.found[kind].count if kind in self.found else 0

    def lines(self) -> list[str]:
        """One a kind: how many, what becomes of them, and the first."""
        return [
            f"{KINDS[kind].what}: {finding.count}, {KINDS[kind].becomes} (first: {finding.examples[0]})"
            for kind, finding in self.found.items()
        ]
