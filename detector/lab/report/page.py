"""The page: sources to HTML."""

import base64
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jinja2

from detector.lab.report import figures, tables
from detector.lab.report.sources import Source
from detector.lab.report.tables import number

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


def make_page(sources: Sequence[Source]) -> str:
    """One HTML document without anything to fetch."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("detector.lab.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    with_metrics = [(source.name, source.metrics.numbers) for source in sources if source.metrics is not None]
    comparison = None
    if len(with_metrics) > 1:
        names, numbers = zip(*with_metrics, strict=True)
        comparison = figures.draw_comparison(names, numbers, METRICS)
    return environment.get_template("template.html.jinja").render(
        sources=[_section(source) for source in sources],
        metrics=METRICS,
        summary=[[name, *(number(numbers.get(key)) for key in METRICS)] for name, numbers in with_metrics],
        configured=[source.name for source in sources if source.config],
        differences=_differences([source.config for source in sources if source.config]),
        comparison=comparison,
    )


def _section(source: Source) -> dict:
    parts: list[tuple[str, Any, Callable[[Any], Any], Callable[[Any], Any] | None]] = [
        ("Study", source.study, figures.draw_study, tables.study),
        ("Training", source.steps, partial(figures.draw_training, parts=source.parts), None),
        ("Errors", source.anatomy, figures.draw_anatomy, tables.anatomy),
        ("Probe: every loss on this model's scores", source.probe, figures.draw_probe, None),
        ("Census: the data and the anchors", source.census, figures.draw_census, tables.census),
    ]
    per_class = source.metrics.per_class if source.metrics is not None else {}
    return {
        "name": source.name,
        "parts": [
            (title, draw(values), list_tables(values) if list_tables else [])
            for title, values, draw, list_tables in parts
            if values
        ],
        "missing": [
            title.partition(":")[0].lower() for title, values, *_ in parts[1:] if not values and not source.study
        ],
        "classes": [(name, number(values.AP), number(values.AP50)) for name, values in per_class.items()],
        "pictures": [base64.b64encode(path.read_bytes()).decode() for path in source.pictures],
    }


def _differences(configs: Sequence[dict]) -> list[list[str]]:
    """The keys in which configs differ, each with every config's value."""
    flat = [_flatten(config) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    return [[k, *(str(one.get(k, "none")) for one in flat)] for k in keys if len({str(one.get(k)) for one in flat}) > 1]


def _flatten(values: object, key: str = "") -> dict[str, object]:
    if not isinstance(values, dict) or not values:
        return {key: values}
    return {k: v for name, value in values.items() for k, v in _flatten(value, f"{key}.{name}".strip(".")).items()}
