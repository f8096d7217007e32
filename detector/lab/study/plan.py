"""A study's file, and the runs it asks for."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any

from pydantic import Field, model_validator

from detector.config import Config, make_config, to_yaml
from detector.core.config_files import CONFIGS, read_values
from detector.core.errors import UserError
from detector.core.overrides import merge
from detector.core.validation import InvalidValues, NonNegativeInt, Settings, parse

STUDIES = CONFIGS / "studies"
Overlays = Annotated[dict[str, dict[str, Any]], Field(min_length=1)]


class Study(Settings):
    """config: what every run starts from, and `common` over it; levels and variants: a name and what it changes; seeds:
    the values of train.seed; metric: one of metrics.json; against: the variant that the others are tested against."""

    config: str
    common: dict[str, Any] = {}
    levels: Overlays
    variants: Overlays
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)] = [0, 1, 2]
    metric: str = "AP"
    against: str

    @model_validator(mode="after")
    def _names(self) -> "Study":
        if self.against not in self.variants:
            raise InvalidValues({("against",): f"{self.against!r} is wrong: should be one of the variants"})
        if len(self.variants) < 2:
            raise InvalidValues({("variants",): "should be at least two, to compare"})
        for key in ("levels", "variants"):
            names = list(getattr(self, key))
            if len({_slug(name) for name in names}) < len(names):
                raise InvalidValues({(key,): "two names differ in punctuation alone; runs need folders of their own"})
        if len(set(self.seeds)) < len(self.seeds):
            raise InvalidValues({("seeds",): "a seed occurs twice, and would be the same run"})
        return self


@dataclass(frozen=True, slots=True)
class Run:
    """One cell of the grid. name: its folder; fingerprint: a hash of its config."""

    level: str
    variant: str
    seed: int
    name: str
    config: Config
    fingerprint: str


def load_study(path_or_name: str) -> Study:
    """A file, or a name in configs/studies. Raises UserError."""
    values = read_values(path_or_name, STUDIES)
    if "data" in values:
        raise UserError(f"{path_or_name}: a config, not a study", "give a study with it as its `config`")
    try:
        return parse(Study, values)
    except InvalidValues as error:
        raise UserError(f"{path_or_name}: {error.line('')}") from None


def make_runs(study: Study) -> list[Run]:
    """Every run, seed by seed, so that a study that is stopped early has whole comparisons. Each config is checked, so
    that no run fails on its own file after hours. Raises UserError with the level and the variant at fault."""
    base = merge(read_values(study.config), study.common)
    return list(_runs(study, base))


def _runs(study: Study, base: dict[str, Any]) -> Iterator[Run]:
    for seed in study.seeds:
        for level, change in study.levels.items():
            for variant, remedy in study.variants.items():
                values = reduce(merge, (change, remedy, {"train": {"seed": seed}}), base)
                try:
                    config = make_config(values)
                except UserError as error:
                    raise UserError(f"level {level!r}, variant {variant!r}: {error}") from None
                fingerprint = hashlib.sha256(to_yaml(config).encode()).hexdigest()[:12]
                yield Run(level, variant, seed, f"{_slug(level)}-{_slug(variant)}-{seed}", config, fingerprint)


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower()).strip("_")
