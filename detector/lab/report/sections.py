"""The sections of the page, one for each source."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from detector.core.command import runnable
from detector.core.errors import UserError
from detector.core.wording import number, ratio
from detector.lab.report import figures, tables
from detector.lab.report.examples import choose_examples
from detector.lab.report.figures.drawing import Figure
from detector.lab.report.pictures import Picture, make_pictures
from detector.lab.report.settings import settings_rows
from detector.lab.report.sources import Source
from detector.lab.report.suggestions import Suggestion, suggest
from detector.lab.report.summary import foreground_ratio, summarize
from detector.lab.report.tables import Table
from detector.lab.report.validation import read_detections, read_validation_set

MAX_PICTURE_BYTES = 1_500_000  # of all pictures of a page


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a section: figures, then tables."""

    title: str
    figures: Sequence[Figure]
    tables: Sequence[Table] = ()


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of a run at a score threshold; `problem` is the reason where there are none."""

    threshold: float = 0
    best: Sequence[Picture] = ()
    worst: Sequence[Picture] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A source on the page. tiles: numbers and their names; settings: names and values."""

    name: str
    anchor: str
    tiles: Sequence[tuple[str, str]]
    sentences: Sequence[str]
    suggestions: Sequence[Suggestion]
    pictures: Pictures | None
    parts: Sequence[Part]
    settings: Sequence[tuple[str, str]]
    config_text: str = field(repr=False)


def make_section(source: Source, anchor: str, num_sections: int) -> Section:
    """Make the section of a source.

    Args:
        source: a folder's files.
        anchor: the section's id on the page.
        num_sections: the number of sections that share MAX_PICTURE_BYTES.
    """
    dataset, pictures = None, None
    if source.is_run:
        try:
            dataset = read_validation_set(source)
            examples = choose_examples(dataset, read_detections(source, dataset))
            num_pictures = max(1, len(examples.best) + len(examples.worst)) * num_sections
            best, worst = (
                make_pictures(dataset, chosen, MAX_PICTURE_BYTES // num_pictures)
                for chosen in (examples.best, examples.worst)
            )
            pictures = Pictures(examples.threshold, best, worst)
        except UserError as error:
            pictures = Pictures(problem=error.problem)
    num_images = len(dataset) if dataset is not None else None
    return Section(
        name=source.name,
        anchor=anchor,
        tiles=_tiles(source, num_images),
        sentences=summarize(source, num_images),
        suggestions=[replace(step, commands=[*map(runnable, step.commands)]) for step in suggest(source, dataset)],
        pictures=pictures,
        parts=_parts(source),
        settings=settings_rows(source),
        config_text=source.config_text,
    )


def _tiles(source: Source, num_images: int | None) -> list[tuple[str, str]]:
    tiles = []
    if source.metrics is not None:
        tiles += [(number(source.metrics.numbers.get(key)), key) for key in ("AP", "AP50", "AP75")]
    if source.anatomy is not None:
        tiles.append((number(source.anatomy.curves.best_f1.f1), "best F1"))
    background = foreground_ratio(source.census, source.steps)
    if not math.isnan(background):
        tiles.append((f"1 : {ratio(background)}", "foreground to background"))
    if num_images is not None:
        tiles.append((f"{num_images:,}", "validation images"))
    elif source.census is not None and not source.is_run:
        tiles += [(f"{source.census.num_images:,}", "images"), (f"{source.census.num_objects:,}", "objects")]
    return tiles


def _parts(source: Source) -> list[Part]:
    parts = []
    if source.study:
        parts.append(Part("Study", figures.draw_study(source.study), tables.study(source.study)))
    if source.anatomy is not None:
        parts.append(Part("Errors", figures.draw_anatomy(source.anatomy), tables.anatomy(source.anatomy)))
    if source.metrics is not None and source.metrics.per_class:
        per_class = source.metrics.per_class
        parts.append(Part("Classes", [figures.draw_classes(per_class)], [tables.classes(per_class)]))
    if source.steps:
        parts.append(Part("Training", figures.draw_training(source.steps, source.parts)))
    if source.probe is not None:
        parts.append(Part("Probe of the losses", figures.draw_probe(source.probe)))
    if source.census is not None:
        parts.append(Part("Census of the anchors", figures.draw_census(source.census), tables.census(source.census)))
    return parts
