"""The file of a study, and the runs that the file defines."""

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
    """The content of a study's file.

    config: the config that all runs start from.
    common: the values that all runs change.
    levels: the values that each level changes, by the level's name.
    variants: the values that each variant changes, by the variant's name.
    seeds: the values of train.seed.
    metric: the name of a metric in metrics.json.
    against: the name of the variant to which the other variants are compared.
    """

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
            names = ", ".join(map(repr, self.variants))
            raise InvalidValues({("against",): f"{self.against!r} is not a variant; the variants are {names}"})
        if len(self.variants) < 2:
            raise InvalidValues({("variants",): "a study compares variants, but there is only 1; add a variant"})
        for key in ("levels", "variants"):
            names = list(getattr(self, key))
            if len({_slug(name) for name in names}) < len(names):
                text = (
                    "two names differ only in punctuation or case, and their runs would share a folder; change a name"
                )
                raise InvalidValues({(key,): text})
        if len(set(self.seeds)) < len(self.seeds):
            raise InvalidValues({("seeds",): f"{self.seeds} has a seed twice; remove the repeated seed"})
        return self


@dataclass(frozen=True, slots=True)
class Run:
    """A training run of a study, for a level, a variant and a seed.

    name: the name of the run's folder.
    fingerprint: a hash of the config.
    """

    level: str
    variant: str
    seed: int
    name: str
    config: Config
    fingerprint: str


def load_study(path_or_name: str) -> Study:
    """Return the study in a file, or of a name in configs/studies.

    Raises:
        UserError: the file cannot be read, is a config, or has a wrong value.
    """
    values = read_values(path_or_name, STUDIES)
    if "data" in values:
        raise UserError(
            f"{path_or_name}: this file is a config, not a study", "give a study whose key `config` names this config"
        )
    try:
        return parse(Study, values)
    except InvalidValues as error:
        raise UserError(f"{path_or_name}: {error.line('')}") from None


def make_runs(study: Study) -> list[Run]:
    """Return all runs, seed by seed, so that a study that stops early has complete comparisons.

    All configs are checked before the first run starts.

    Raises:
        UserError: the config of a level and variant is wrong.
    """
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
