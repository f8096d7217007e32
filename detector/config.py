"""The config: the schema of all sections, and the functions that load it from files and overrides.

Relative paths, also `data.root`, are relative to the working folder. Only `base` is relative to the file that
contains it.
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
from detector.losses.samplers import AnchorSampler
from detector.losses.settings import LossSettings
from detector.models.detector import ModelSettings
from detector.old_versions import upgrade_config


def _import_unless_for_inference(module: str, info: ValidationInfo) -> str:
    return module if info.context == FOR_INFERENCE else _import(module)


def _import(module: str) -> str:
    if not all(name.isidentifier() for name in module.split(".")):
        raise ValueError("should be the dotted name of a module, for example package.module")
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{error}; install the module, or add its folder to PYTHONPATH") from None
    return module


Module = Annotated[str, AfterValidator(_import_unless_for_inference)]


class Config(Settings):
    """The complete config.

    Attributes:
        imports: Python modules that register parts. They are in the working folder or in a folder of PYTHONPATH.
        data: the images, their sizes, and how training changes them.
        model: the network.
        assigner: the rule that makes priors foreground, background or ignored.
        anchor_sampler: chooses the priors that the classification loss counts.
        loss: the losses.
        train: the length and speed of the training, and its records.
        faults: the reaction to errors during a training.
        evaluation: the detections and the metrics.
    """

    imports: list[Module] = []  # the first field: fields are validated in order, and these modules register parts
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
        sampler = self.anchor_sampler.type
        for loss in self.loss.classification_types():
            if not getattr(CLASSIFICATION_LOSSES.get(loss), "mines", False) or sampler == "all":
                continue
            reason = f"the loss {loss} selects its anchors; set anchor_sampler=all, or another loss"
            raise InvalidValues({("anchor_sampler",): f"{sampler!r} is wrong: {reason}"})
        if self.train.compile and not isinstance(self.data.short_side, int):
            reason = "torch.compile would compile each image size; set data.short_side to one number"
            raise InvalidValues({("train", "compile"): f"True is wrong: {reason}"})
        background, foreground = (self.assigner.parameters.get(key) for key in ("background", "foreground"))
        if background is not None and foreground is not None and background > foreground:
            reason = f"should be at most assigner.foreground, which is {foreground}"
            raise InvalidValues({("assigner", "background"): f"{background} is wrong: {reason}"})
        return self


def load_config(
    path_or_name: str, overrides: Sequence[str] = (), search: Path = CONFIGS, *, for_inference: bool = False
) -> Config:
    """Return the config of a file, its `base` files, and overrides.

    The values of the file replace those of its bases, and the overrides replace both.

    Args:
        path_or_name: a path, or the name of a file in `search`. The suffix `.yaml` is optional.
        overrides: texts `key.path=value`.
        search: the folder of the files that are given by a name without a folder.
        for_inference: see `make_config`.

    Raises:
        UserError: a file cannot be read, an override is malformed, or a value is wrong.
    """
    values = read_values(path_or_name, search)
    if {"levels", "variants"} <= values.keys():
        raise UserError(f"{path_or_name}: the file is a study, not a config", "give the file to `detector study`")
    return _with_overrides(values, overrides, for_inference)


def config_from_text(text: str, source: str, overrides: Sequence[str] = (), *, for_inference: bool = False) -> Config:
    """Return the config that `to_yaml` has written, for example into a checkpoint, with overrides.

    Args:
        text: the config as YAML.
        source: the name of the text in error messages.
        overrides: texts `key.path=value`.
        for_inference: see `make_config`.

    Raises:
        UserError: the text is not YAML, an override is malformed, or a value is wrong.
    """
    return _with_overrides(read_mapping(text, source), overrides, for_inference)


def make_config(values: dict[str, Any], for_inference: bool = False) -> Config:
    """Return the config with these values.

    Args:
        values: nested plain values, for example those of a checkpoint.
        for_inference: do not import the modules of `imports`. The parts that only these modules register (data sets,
            assigner, losses) stay unchecked. `with_parts` returns a config whose parts can be built.

    Raises:
        UserError: a value is wrong, or a key belongs to version 0.1. The remedy for an old key is its new key.
    """
    if old_keys := upgrade_config(values)[1]:
        raise UserError(
            f"{', '.join(old_keys)}: the config has keys of version 0.1",
            "; ".join(f"in place of {old}, write {new}" for old, new in old_keys.items()),
        )
    try:
        return parse(Config, values, FOR_INFERENCE if for_inference else None)
    except InvalidValues as error:
        raise UserError(error.line("")) from None


def _with_overrides(values: dict[str, Any], overrides: Sequence[str], for_inference: bool) -> Config:
    if not for_inference:  # the modules come first: they register parts, whose types decide how overrides are read
        imports = [override for override in overrides if override.partition("=")[0] == "imports"]
        import_modules(merge(values, read_overrides(imports, Config)).get("imports"))
    return make_config(merge(values, read_overrides(overrides, Config)), for_inference)


def import_modules(modules: Any) -> None:
    """Import the modules of `imports`. Raises UserError where an import fails.

    A value that is not a list of texts is ignored, because the schema refuses it later.
    """
    for i, module in enumerate(modules if isinstance(modules, list) else ()):
        if isinstance(module, str):
            try:
                _import(module)
            except ValueError as error:
                raise UserError(f"imports.{i}: {module!r} is wrong: {error}") from None


def with_parts(config: Config, *parts: Part | None) -> Config:
    """Return a config made for inference whose `parts` can be built.

    The modules of `imports` are imported only if one of the parts is not registered.

    Args:
        config: the config.
        parts: parts of the config. None counts as a part that can be built.

    Raises:
        UserError: a module is missing, or no module registers the part.
    """
    if all(part is None or part.is_registered for part in parts):
        return config
    return make_config(config.model_dump(mode="json"))


def data_part(config: Config, split: str) -> Part | None:
    """Return the data set from which a split is read.

    Args:
        config: the config.
        split: `train` or `val`. With `data.split`, both are read from `data.train`.
    """
    return config.data.train if config.data.split or split == "train" else config.data.val


def to_yaml(config: Config) -> str:
    """Return the config with all defaults as YAML that `load_config` can read."""
    values = config.model_dump(mode="json")
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
