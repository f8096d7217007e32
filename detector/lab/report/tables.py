"""The tables of a report: exact numbers that a figure does not show."""

from collections.abc import Sequence
from dataclasses import dataclass

from detector.core.wording import number
from detector.evaluation.anatomy_result import Anatomy
from detector.evaluation.metrics import ClassMetrics
from detector.imbalance.census_result import Census
from detector.lab.study.results import difference_cells, mean_cells
from detector.lab.study.selection import selection_cells


@dataclass(frozen=True, slots=True)
class Table:
    """A title, the columns' names, and rows of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def classes(per_class: dict[str, ClassMetrics]) -> Table:
    """Return AP and AP50 of each class."""
    rows = [[name, number(values.AP), number(values.AP50)] for name, values in per_class.items()]
    return Table("AP of all classes", ["class", "AP", "AP50"], rows)


def study(tables: dict) -> list[Table]:
    """Return the means and the paired tests of a study, and the scores of its selection."""
    selection = [Table("Selection of the settings", *selection_cells(tables))] if "selection" in tables else []
    return [Table("Means", *mean_cells(tables)), Table("Paired tests", *difference_cells(tables)), *selection]


def anatomy(anatomy: Anatomy) -> list[Table]:
    """Return AP by size, the separation of the anchors, and the boxes at the border."""
    sizes, scores, border = anatomy.by_size, anatomy.anchor_level, anatomy.at_border
    tables = [Table("AP by object size", list(sizes), [[number(value) for value in sizes.values()]])]
    if scores is not None:
        row = [number(scores.roc_auc, 4), number(scores.average_precision, 4)]
        tables.append(Table("Anchors, foreground against background", ["ROC-AUC", "average precision"], [row]))
    if border is not None:
        row = [f"{touching:,} of {total:,}" for touching, total in (border.objects, border.wrong)]
        tables.append(Table("At the picture's border", ["objects", "wrong detections"], [row]))
    return tables


def census(census: Census) -> list[Table]:
    """Return the counts by size, the crowding, and the remedies."""
    remedies = census.remedies
    factors = remedies.repeat_factors
    values = [
        [f"{row.objects:,}" for row in census.by_class],
        [number(row.foreground_of_object.median, 0) for row in census.by_class],
        *([number(v) for v in weights] for weights in remedies.class_weights.values()),
        *([number(v, 2) for v in factor.classes] for factor in factors.values()),
    ]
    return [
        _sizes(census),
        *_crowding(census),
        Table(
            "Remedies: alpha that balances the gradient at the start",
            [f"gamma {gamma}" for gamma in remedies.alpha],
            [[number(alpha) for alpha in remedies.alpha.values()]],
        ),
        Table(
            "Remedies: class weights and repeat factors",
            ["class", "objects", "anchors of the median object", *(rule.replace("_", " ") for rule in
             remedies.class_weights), *(f"repeated at {threshold}" for threshold in factors)],
            list(zip(census.class_names, *values, strict=True)),
        ),
    ]  # fmt: skip


def _sizes(census: Census) -> Table:
    return Table(
        "Object sizes",
        ["size", "objects", "foreground anchors", "ignored anchors", "without an anchor", "low quality only",
         "anchors of the median object"],
        [
            [row.name, *(f"{n:,}" for n in (row.objects, row.foreground, row.ignored, row.unmatched, row.low_quality)),
             number(row.foreground_of_object.median, 0)]
            for row in census.by_size
        ],
    )  # fmt: skip


def _crowding(census: Census) -> list[Table]:
    crowding = census.crowding
    if crowding is None:
        return []
    columns = ["mean IoU with the nearest object", "objects that another overlaps by half"]
    return [Table("Crowding", columns, [[number(crowding.mean_max_iou), f"{crowding.objects_overlapping_half:,}"]])]
