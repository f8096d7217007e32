"""The file of a study, and the runs that the file defines."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from detector.config import Config, make_config, to_yaml
from detector.core.config_files import CONFIGS, read_values
from detector.core.errors import UserError
from detector.core.overrides import merge, nested
from detector.core.validation import InvalidValues, KeyPath, NonNegativeInt, Settings, UnitFloat, parse

STUDIES = CONFIGS / "studies"
Metric = Literal["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"]
METRICS = get_args(Metric)
Overlays = Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
Seeds = Annotated[list[NonNegativeInt], Field(min_length=1)]
DIVIDED = ("train", "val", "split")  # the keys of `data` that the selection runs set
Cell = tuple[str, str]  # a level and a variant
Combination = dict[str, Any]  # a value for each key of a grid


def _without_images(grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
    for key in grid:
        if key == "data" or key.split(".")[:2] in (["data", name] for name in DIVIDED):
            text = "a grid with other images would compare scores of different images; remove this key"
            raise InvalidValues({(key,): text})
    return grid


Grid = Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], AfterValidator(_without_images)]


class _Variant(Settings):
    """A variant's values, and its grid."""

    model_config = ConfigDict(extra="allow")

    grid: Grid = {}


def _with_valid_grid(values: dict[str, Any]) -> dict[str, Any]:
    parse(_Variant, values)
    return values


Variants = Annotated[dict[str, Annotated[dict[str, Any], AfterValidator(_with_valid_grid)]], Field(min_length=1)]


class Select(Settings):
    """The section `select` of a study: the settings of each variant are chosen from a grid.

    A selection run trains on a part of the training set and is evaluated on the other images of the training set.

    Attributes:
        split: the fraction of the training images that the selection runs train on. It is their data.split.
        seeds: the values of train.seed in the selection runs.
        common: the values that all selection runs change.
        grid: the values to try for each key, for all variants. The grid of a variant adds keys, or replaces their
            values.
    """

    split: Annotated[UnitFloat, Field(gt=0, lt=1)] = 0.8
    seeds: Seeds = [0]
    common: dict[str, Any] = {}
    grid: Grid = {}

    @model_validator(mode="after")
    def _only_training_images(self) -> "Select":
        data = self.common.get("data", {})
        for key in DIVIDED:
            if isinstance(data, dict) and key in data:
                text = "the selection runs divide the training set of the study; remove this key, and use select.split"
                raise InvalidValues({("common", "data", key): text})
        _check_seeds(self.seeds)
        return self


class Study(Settings):
    """The content of a study's file.

    Attributes:
        config: the config that all runs start from.
        common: the values that all runs change.
        levels: the values that each level changes, by the level's name.
        variants: the values that each variant changes, by the variant's name. The key `grid` has the values to try.
        seeds: the values of train.seed.
        metric: the name of a metric in metrics.json.
        against: the name of the variant to which the other variants are compared.
        select: how the values of the grids are chosen.
    """

    config: str
    common: dict[str, Any] = {}
    levels: Overlays
    variants: Variants
    seeds: Seeds = [0, 1, 2]
    metric: Metric = "AP"
    against: str
    select: Select | None = None

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
        _check_seeds(self.seeds)
        return self

    @model_validator(mode="after")
    def _grids(self) -> "Study":
        problems: dict[KeyPath, str] = {}
        if self.select is None:
            text = "a grid needs the key `select` of the study; add select: {split: 0.8}, or remove the grid"
            problems |= {("variants", name, "grid"): text for name, values in self.variants.items() if "grid" in values}
        elif not any(map(self.grid, self.variants)):
            problems[("select",)] = "no variant has a grid; add select.grid, or remove select"
        if problems:
            raise InvalidValues(problems)
        return self

    def cells(self) -> Iterable[Cell]:
        """Return all pairs of a level and a variant."""
        return product(self.levels, self.variants)

    def grid(self, variant: str) -> dict[str, list[Any]]:
        """Return the values to try for each key; no keys where the variant has no grid."""
        shared = self.select.grid if self.select else {}
        return shared | self.variants[variant].get("grid", {})

    def changes(self, level: str, variant: str) -> list[dict[str, Any]]:
        """Return the values that a level and variant change, in the order of their priority: the last has the highest.

        Args:
            level: the name of the level.
            variant: the name of the variant.
        """
        of_variant = {key: value for key, value in self.variants[variant].items() if key != "grid"}
        return [self.common, self.levels[level], of_variant]


def _check_seeds(seeds: list[int]) -> None:
    if len(set(seeds)) < len(seeds):
        raise InvalidValues({("seeds",): f"{seeds} has a seed twice; remove the repeated seed"})


@dataclass(frozen=True, slots=True)
class Run:
    """A training run of a study, for a level, a variant and a seed.

    Attributes:
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


def make_runs(study: Study, choices: Mapping[Cell, Combination] | None = None) -> list[Run]:
    """Return all runs, seed by seed, so that a study that stops early has complete comparisons.

    All configs are checked before the first run starts.

    Args:
        study: the study.
        choices: the chosen combination of each level and variant. A variant with a grid has no runs at the other
            levels.

    Raises:
        UserError: the config of a level and variant is wrong.
    """
    base, runs = read_values(study.config), []
    for seed, (level, variant) in product(study.seeds, study.cells()):
        combination = (choices or {}).get((level, variant)) if study.grid(variant) else {}
        if combination is not None:
            runs.append(make_run(level, variant, seed, [base, *study.changes(level, variant), nested(combination)]))
    return runs


def make_run(level: str, variant: str, seed: int, layers: Iterable[dict[str, Any]]) -> Run:
    """Return a run.

    Args:
        level: the name of the level.
        variant: the name of the variant.
        seed: the value of train.seed.
        layers: values of the config. A layer has priority over the layers before it.

    Raises:
        UserError: the config is wrong.
    """
    values = reduce(merge, (*layers, {"train": {"seed": seed}}))
    try:
        config = make_config(values)
    except UserError as error:
        raise UserError(f"level {level!r}, variant {variant!r}: {error}") from None
    fingerprint = hashlib.sha256(to_yaml(config).encode()).hexdigest()[:12]
    return Run(level, variant, seed, f"{_slug(level)}-{_slug(variant)}-{seed}", config, fingerprint)


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower()).strip("_")
