"""The config: the sections of all rooms in one schema, and the way from files and overrides to it.

Relative paths, `data.root` among them, are relative to the working directory (`base` alone is relative to the file that
names it).
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from detector.core.config_files import CONFIGS, read_mapping, read_values
from detector.core.errors import UserError
from detector.core.overrides import merge, read_overrides
from detector.core.registry import FOR_INFERENCE, ChosenFrom, Part
from detector.core.strict_yaml import Dumper
from detector.core.validation import InvalidValues, Settings, parse
from detector.data.settings import DataSettings
from detector.engine.evaluate import EvaluationSettings
from detector.engine.guard import FaultSettings
from detector.engine.settings import TrainSettings
from detector.geometry.assignment import ASSIGNERS, Assigner
from detector.losses import ANCHOR_SAMPLERS, CLASSIFICATION_LOSSES
from detector.losses.criterion import LossSettings
from detector.losses.samplers import AnchorSampler
from detector.models.detector import ModelSettings
from detector.old_versions import upgrade_config


def _import_unless_for_inference(module: str, info: ValidationInfo) -> str:
    return module if info.context == FOR_INFERENCE else _import(module)


def _import(module: str) -> str:
    if not all(name.isidentifier() for name in module.split(".")):
        raise ValueError("should be the dotted name of a module")
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{error}; install it, or put its folder on PYTHONPATH") from None
    return module


Module = Annotated[str, AfterValidator(_import_unless_for_inference)]


class Config(Settings):
    """The whole config."""

    imports: list[Module] = []  # first, since fields are validated in order and parts may be registered there
    data: DataSettings
    model: ModelSettings = Field(default_factory=ModelSettings)
    assigner: Annotated[Part[Assigner], ChosenFrom(ASSIGNERS, "max_iou")] = Field("max_iou", validate_default=True)
    anchor_sampler: Annotated[Part[AnchorSampler], ChosenFrom(ANCHOR_SAMPLERS, "all")] = Field(
        "all", validate_default=True
    )
    loss: LossSettings = Field(default_factory=LossSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    faults: FaultSettings = Field(default_factory=FaultSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)

    @model_validator(mode="after")
    def _sensible_together(self, info: ValidationInfo) -> Self:
        if info.context == FOR_INFERENCE:
            return self
        loss, sampler = self.loss.classification.type, self.anchor_sampler.type
        if getattr(CLASSIFICATION_LOSSES.get(loss), "mines", False) and sampler != "all":
            reason = f"{loss} chooses its anchors itself, by their loss; set anchor_sampler: all, or another loss"
            raise InvalidValues({("anchor_sampler",): f"{sampler!r} is wrong: {reason}"})
        if self.train.compile and not isinstance(self.data.short_side, int):
            reason = "every image size is compiled anew; set data.short_side to one number"
            raise InvalidValues({("train", "compile"): f"True is wrong: {reason}"})
        if self.assigner.parameters.get("background", 0) > self.assigner.parameters.get("foreground", 1):
            raise InvalidValues({("assigner", "background"): "should not exceed assigner.foreground"})
        return self


def load_config(
    path_or_name: str, overrides: Sequence[str] = (), search: Path = CONFIGS, *, for_inference: bool = False
) -> Config:
    """The config of a file with its `base` files below it and the overrides `key.path=value` above it.

    A name without a folder is looked up in `search`, and `.yaml` may be left out. See `make_config`. Raises UserError.
    """
    values = read_values(path_or_name, search)
    if {"levels", "variants"} <= values.keys():
        raise UserError(f"{path_or_name}: a study, not a config", "give it to `detector study`")
    return _with_overrides(values, overrides, for_inference)


def config_from_text(text: str, source: str, overrides: Sequence[str] = (), *, for_inference: bool = False) -> Config:
    """The config that `to_yaml` wrote, e.g. into a checkpoint, with overrides above it. See `make_config`. Raises
    UserError."""
    return _with_overrides(read_mapping(text, source), overrides, for_inference)


def make_config(values: dict[str, Any], for_inference: bool = False) -> Config:
    """The config that nested plain values make, e.g. those of a checkpoint.

    `for_inference`: the modules of `imports` are not imported, and parts (data sets, assigner, losses) that only they
    have stay unchecked. `with_parts` gives a config whose parts can be built. Raises UserError; for keys of an older
    version, it says what to write.
    """
    if old_keys := upgrade_config(values)[1]:
        raise UserError("; ".join(old_keys))
    try:
        return parse(Config, values, FOR_INFERENCE if for_inference else None)
    except InvalidValues as error:
        raise UserError(error.line("")) from None


def _with_overrides(values: dict[str, Any], overrides: Sequence[str], for_inference: bool) -> Config:
    if not for_inference:  # before the overrides are read, because the types of the parts' parameters must be known
        own_imports = [override for override in overrides if override.partition("=")[0] == "imports"]
        import_modules(merge(values, read_overrides(own_imports, Config)).get("imports"))
    return make_config(merge(values, read_overrides(overrides, Config)), for_inference)


def import_modules(modules: Any) -> None:
    """Import the modules of `imports`. The schema refuses a value that is not a list of texts. Raises UserError."""
    for i, module in enumerate(modules if isinstance(modules, list) else ()):
        if isinstance(module, str):
            try:
                _import(module)
            except ValueError as error:
                raise UserError(f"imports.{i}: {module!r} is wrong: {error}") from None


def with_parts(config: Config, *parts: Part | None) -> Config:
    """Return a config made for inference whose `parts` can be built.

    The modules of `imports` are imported where one of the parts is not registered.

    Raises:
        UserError: a module is missing, or no module registers the part.
    """
    if all(part is None or part.is_registered for part in parts):
        return config
    return make_config(config.model_dump(mode="json"))


def data_part(config: Config, split: str) -> Part | None:
    """Return the data set that `train` or `val` is read from."""
    return config.data.train if config.data.split or split == "train" else config.data.val


def to_yaml(config: Config) -> str:
    """The config with every default filled in, itself a valid file for `load_config`."""
    values = config.model_dump(mode="json")
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
