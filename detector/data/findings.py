"""What is wrong or odd with a data set, and what becomes of it: one list that readers fill, training announces and the
data check shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from detector.errors import UserError, one_line

Invalid = Literal["error", "skip"]
NUM_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """what: the entries concerned, in the plural. becomes: what training does with them (the invalid ones where
    `data.invalid` is skip). remedy: how to mend them. level: a note; invalid, which stops a training unless
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
    "image_size": Kind("images without a usable size", "left out", "write the image's width and height", "invalid"),
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
        "boxes that look like x1, y1, x2, y2 where x, y, width, height belong",
        "taken as written",
        "write x2 - x1 and y2 - y1 in all boxes",
        "invalid",
    ),
    # entries that training can do with
    "annotation_lost": Kind("annotations of images that are left out", "left out with them", "see the images"),
    "box_clipped": Kind("boxes that reach over their image's edge", "clipped", "correct the box"),
    "box_small": Kind(
        "boxes too small for any anchor at the training size",
        "matched poorly or not at all",
        "raise data.short_side or lower model.anchor_sizes (tools/census.py suggests some)",
    ),
    "annotation_id": Kind("annotations with a missing, repeated or zero id", "numbered anew", "nothing need be done"),
    "category_ids": Kind("category ids that leave gaps or begin at 0", "kept in results", "nothing need be done"),
    "area": Kind("annotations without area", "that of the box", "nothing need be done"),
    "crowd": Kind("annotations without iscrowd", "taken as single objects", "nothing need be done"),
    "image_empty": Kind(
        "images without objects", "trained as background unless data.keep_empty=false", "nothing need be done"
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
    "data_set": Kind("data sets that cannot be read", "nothing", "mend what is named", "fatal"),
    "image_damaged": Kind(
        "images that cannot be decoded", "stop the training when they come up", "replace or remove the image", "fatal"
    ),
    "image_unlike": Kind(
        "images of another size than annotated",
        "stop the training when they come up",
        "mend the image or its annotated size",
        "fatal",
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
    "image_deep": Kind("images of 16 bit", "reduced to 8 bit", "nothing need be done"),
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

    def add(self, kind: str, which: Sequence[int], describe: Callable[[int], str]) -> None:
        """The entries `which` are of this kind; `describe` says of one of them what is wrong and where."""
        if not len(which):
            return
        if KINDS[kind].level == "invalid" and self.invalid == "error":
            raise UserError(
                f"{describe(which[0])}; {KINDS[kind].remedy}, or set data.invalid=skip ({len(which)} such in all)"
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
