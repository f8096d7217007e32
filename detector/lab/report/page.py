"""The page: sources to HTML."""

from collections.abc import Sequence

import jinja2

from detector.lab.report import comparison, figures
from detector.lab.report.sections import make_section
from detector.lab.report.sources import Source, join


def make_page(sources: Sequence[Source]) -> str:
    """Make one HTML document that needs no other file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("detector.lab.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["slug"] = lambda title: title.lower().replace(" ", "-")
    joined = join(sources)
    runs = [source for source in joined if source.metrics is not None]
    configured = [source for source in joined if source.config]
    compared = None
    if len(runs) > 1:
        numbers = [run.metrics.numbers for run in runs if run.metrics is not None]
        compared = {
            "sentence": comparison.best_run(runs),
            "rows": comparison.metric_rows(runs),
            "figure": figures.draw_comparison([run.name for run in runs], numbers, comparison.METRICS),
            "configured": [source.name for source in configured],
            "differences": comparison.config_differences([source.config for source in configured]),
        }
    return environment.get_template("page.html.jinja").render(
        sections=[make_section(source, f"s{i}", len(joined)) for i, source in enumerate(joined, 1)],
        metrics=comparison.METRICS,
        compared=compared,
    )
