"""The result of an anatomy: the causes of an evaluation's numbers."""

from dataclasses import dataclass, field

from detector.core.json_records import JsonRecord, Number
from detector.evaluation.anchor_scores import AnchorRanking


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion(JsonRecord):
    """The confusions between the classes of objects and detections, at IoU 0.5.

    names: the K class names, then `background`.
    counts: (K + 1, K + 1), rows the truth, columns the prediction.
    score: the lowest score of a detection that counts.
    """

    names: list[str]
    counts: list[list[int]]
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint(JsonRecord):
    """The precision, recall and F1 (0..1) of the detections with at least `score`."""

    score: float
    precision: Number
    recall: Number
    f1: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRecall(JsonRecord):
    """COCO's interpolated precision of a class at the recalls 0, 0.01, ..., 1, as two lists of 101 numbers in 0..1."""

    recall: list[float]
    precision: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves(JsonRecord):
    """The precision, recall and F1 of all classes together at IoU 0.5, over T thresholds of the score.

    thresholds: (T,) the lowest score of a detection that counts.
    precision: (T,) 0..1; NaN where no detection counts.
    recall: (T,) 0..1; NaN where there are no objects.
    f1: (T,) 0..1; 0 where precision or recall is NaN.
    best_f1: the numbers at the lowest threshold with the highest F1.
    pr: precision against recall of each class that has objects, by the class's name.
    """

    thresholds: list[float]
    precision: list[Number]
    recall: list[Number]
    f1: list[Number]
    best_f1: OperatingPoint
    pr: dict[str, PrecisionRecall]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBin(JsonRecord):
    """The mean score and the precision (0..1) of the `count` detections in a range of scores."""

    score: float
    precision: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration(JsonRecord):
    """The agreement of the scores with the probability of a correct detection.

    ece: expected calibration error, 0..1; NaN without detections.
    bins: the ranges of scores that have detections, in ascending order.
    """

    ece: Number
    bins: list[CalibrationBin]


@dataclass(frozen=True, slots=True, kw_only=True)
class AtBorder(JsonRecord):
    """The number of boxes that touch the border of their image, and the number of all boxes.

    objects: the numbers of objects (without crowds).
    wrong: the numbers of wrong detections with at least `Confusion.score`.
    """

    objects: tuple[int, int]
    wrong: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImbalancePart(JsonRecord):
    """The average precision on a third of the images, ordered by their background anchors per foreground anchor.

    name: the name of the third.
    background_per_foreground: the lowest and the highest ratio of the third.
    images: the number of images.
    AP, AP50: as COCO defines them, 0..1; NaN where the images have no objects.
    """

    name: str
    background_per_foreground: tuple[float, float]
    images: int
    AP: Number
    AP50: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy(JsonRecord):
    """The causes of an evaluation's numbers, as anatomy.json holds them.

    tide: AP50 (0..1), and for each error type of `detector.evaluation.tide` the AP50 that a correction would add.
    confusion: the confusion matrix with background.
    curves: precision and recall over the threshold of the score.
    calibration: scores against precision.
    at_border: boxes that touch the border of their image; None in files of older versions.
    by_imbalance: AP in thirds of the images that have foreground anchors.
    by_size: AP of `small`, `medium` and `large` objects; NaN without objects of the size.
    anchor_level: the separation of foreground and background by the anchors' scores; None in files of older versions.
    """

    tide: dict[str, float]
    confusion: Confusion
    curves: Curves
    calibration: Calibration
    at_border: AtBorder | None = None
    by_imbalance: list[ImbalancePart] = field(default_factory=list)
    by_size: dict[str, Number]
    anchor_level: AnchorRanking | None = None
