"""The config: its schema and defaults, and the way from YAML files and `key.path=value` overrides to it.

Parts (data sets, assigner, losses) are checked by the schemas of their registries, which are read from the source where
the parts have not been imported: a wrong config need not wait for torch. Relative paths, `data.root` among them, are
relative to the working directory (`base` alone is relative to the file that names it).
"""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)

from detector.core.errors import UserError
from detector.core.overrides import merge, read_overrides
from detector.core.registry import (
    ANCHOR_SAMPLERS,
    ASSIGNERS,
    BOX_LOSSES,
    CLASSIFICATION_LOSSES,
    DATASETS,
    IMAGE_SAMPLERS,
    InvalidValues,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Registry,
    UnitFloat,
    did_you_mean,
    expand_home,
    parse,
)
from detector.core.strict_yaml import Dumper, read_yaml
from detector.signatures import declare_parts

PACKAGED = Path(__file__).parent / "configs"  # in a wheel; in a clone the folder stands beside the package
CONFIGS = PACKAGED if PACKAGED.is_dir() else Path(__file__).parent.parent / "configs"
FOR_INFERENCE = "for inference"  # validation context: the user's own parts are not built, and stay as they are


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


def _with_plain_view(scales: list[float]) -> list[float]:
    if 1 not in scales:
        raise ValueError("should have 1.0 among them, the images as they are")
    return scales


def _in_order(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("should be in order, the lower bound first")
    return bounds


Module = Annotated[str, AfterValidator(_import_unless_for_inference)]
Switch = Annotated[bool, Field(strict=True)]
BackboneLevel = Annotated[int, Field(strict=True, ge=3, le=5)]
PyramidLevel = Annotated[PositiveInt, Field(ge=3, le=7)]
PositiveFloats = Annotated[list[PositiveFloat], Field(min_length=1)]


def _part(registry: Registry, default: str | None = None, *, optional: bool = False) -> Any:
    """The type of a spec `{type: NAME, ...}`, whose type may be left out where there is a default; its parameters'
    defaults are filled in. `optional`: or of null."""

    def resolve(spec: Any, info: ValidationInfo) -> dict[str, Any] | None:
        if spec is None and optional:
            return None
        if default is not None and isinstance(spec, dict):
            spec = {"type": default} | spec
        if info.context == FOR_INFERENCE and registry.lacks(spec):
            return spec if isinstance(spec, dict) else {"type": spec}
        return registry.resolve(spec)

    return Annotated[dict[str, Any] | None, registry, PlainValidator(resolve), Field(validate_default=True)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    _home = field_validator("*", mode="after")(expand_home)


class AugmentConfig(Section):
    """Probabilities of the flips; range of the zoom factor; greatest move as a part of each side; the part of its area
    that an object must show in the picture to be one, which should be as the annotators held it; greatest relative
    change of each colour property (hue: greatest shift, in turns)."""

    horizontal_flip: UnitFloat = 0.5
    vertical_flip: UnitFloat = 0.0
    scale: Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_in_order)] = (1.0, 1.0)
    translate: UnitFloat = 0.0
    min_visibility: UnitFloat = 0.1
    brightness: UnitFloat = 0.0
    contrast: UnitFloat = 0.0
    saturation: UnitFloat = 0.0
    hue: Annotated[UnitFloat, Field(le=0.5)] = 0.0


class DataConfig(Section):
    """val: null takes what `split`, the fraction of data.train's images that training keeps, leaves over; split_seed
    draws them. invalid: what an entry does that cannot be meant (a box without area, a missing image): it stops the
    run, or is left out and counted. keep_empty: whether images without objects train as background (an evaluation has
    them in any case). sampler: which images come up in an epoch. short_side and long_side in pixels; a short_side of
    two is the range that training draws from. bits: how many bits the values of 16-bit images use, 12 for values up to
    4095; auto looks at the training set. aspect_buckets: a batch is of one of so many ranges of the aspect ratio,
    each padded to one size. cache: a folder for decoded, resized images, 3 bytes a pixel."""

    root: Path = Path(".")
    train: _part(DATASETS)
    val: _part(DATASETS, optional=True) = None
    split: Annotated[UnitFloat, Field(gt=0, lt=1)] | None = None
    split_seed: NonNegativeInt = 0
    invalid: Literal["error", "skip"] = "error"
    keep_empty: Annotated[bool, Field(strict=True)] = True
    sampler: _part(IMAGE_SAMPLERS, "uniform") = "uniform"
    short_side: PositiveInt | Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_in_order)] = 800
    long_side: PositiveInt = 1333
    bits: Annotated[PositiveInt, Field(ge=8, le=16)] | Literal["auto"] = "auto"
    aspect_buckets: PositiveInt = 4
    num_workers: NonNegativeInt | Literal["auto"] = "auto"
    cache: Path | None = None
    augment: AugmentConfig = Field(default_factory=AugmentConfig)

    @model_validator(mode="after")
    def _one_size_to_keep(self) -> Self:
        if self.cache is not None and not isinstance(self.short_side, int):
            raise InvalidValues({("cache",): "images are kept at one size; set data.short_side to one number"})
        return self

    @model_validator(mode="after")
    def _one_way_to_validate(self) -> Self:
        if (self.val is None) == (self.split is None):
            what = "required, and missing" if self.val is None else "one too many beside data.split"
            raise InvalidValues({("val",): f"{what}; give data.val, or val: null and split: 0.8 to divide data.train"})
        return self


class ModelConfig(Section):
    """stride_in_1x1: a bottleneck's stride is in its first convolution, not in its 3x3 one; levels: lowest and highest
    pyramid level, level l having stride 2^l pixels; width: channels of pyramid and heads; pyramid_top: what P6 is made
    of; pyramid_relu: P7 is made of relu(P6); prior: the score every anchor starts with, null for none; anchor_sizes:
    pixels, a list for each level, null for 4 x stride x (1, 2^(1/3), 2^(2/3)); exact_anchors: without torchvision's
    rounding to whole pixels."""

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    norm: Literal["frozen", "batch", "sync", "group"] = "frozen"
    weights: str | None = None
    trainable_stages: Annotated[NonNegativeInt, Field(le=5)] = 3
    stride_in_1x1: Switch = False
    levels: Annotated[tuple[BackboneLevel, PyramidLevel], AfterValidator(_in_order)] = (3, 7)
    width: PositiveInt = 256
    pyramid_top: Literal["p5", "c5"] = "p5"
    pyramid_relu: Switch = True
    head_depth: NonNegativeInt = 4
    head_norm: Literal["none", "group"] = "none"
    prior: Annotated[UnitFloat, Field(gt=0, lt=1)] | None = 0.01
    anchor_sizes: list[PositiveFloats] | None = None
    anchor_ratios: PositiveFloats = [0.5, 1.0, 2.0]
    exact_anchors: Switch = False

    @field_validator("anchor_sizes")
    @classmethod
    def _a_list_for_each_level(cls, sizes: list[list[float]] | None, info: ValidationInfo) -> list[list[float]] | None:
        if sizes is not None and "levels" in info.data:  # absent where levels are wrong themselves
            lowest, highest = info.data["levels"]
            count = highest - lowest + 1
            if len(sizes) != count or len({len(level) for level in sizes}) > 1:
                raise ValueError(f"should be {count} lists of one length, one for each of levels {lowest} to {highest}")
        return sizes


class LossConfig(Section):
    classification: _part(CLASSIFICATION_LOSSES, "focal") = "focal"
    box: _part(BOX_LOSSES, "smooth_l1") = "smooth_l1"
    box_weight: NonNegativeFloat = 1.0
    normaliser: Literal["global", "local", "image", "ema"] = "global"


class TrainConfig(Section):
    """batch_size: images of a batch, of all processes together; milestones: fractions of the run; warmup_steps: at most
    a tenth of the run's steps; compile: the model by torch.compile, once for each bucket's size; evaluate_every:
    epochs, 0 for at the end alone; log_every: steps; meter_every: steps from one reading of the meters to the next,
    which costs a part of a step; save_every: steps between checkpoints inside an epoch, 0 for at its end alone;
    keep_checkpoints: last.pt and how many before it."""

    epochs: PositiveInt = 12
    batch_size: PositiveInt = 16
    accumulation: PositiveInt = 1
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01
    weight_decay: NonNegativeFloat = 1e-4
    momentum: UnitFloat = 0.9
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: list[UnitFloat] = [0.6667, 0.8889]
    step_factor: UnitFloat = 0.1
    warmup_steps: NonNegativeInt = 500
    warmup_factor: UnitFloat = 0.001
    clip_norm: PositiveFloat | None = None
    ema_decay: UnitFloat | None = None
    compile: Switch = False
    channels_last: Switch | Literal["auto"] = "auto"
    evaluate_every: NonNegativeInt = 1
    log_every: PositiveInt = 20
    meter_every: PositiveInt = 20
    save_every: NonNegativeInt = 1000
    keep_checkpoints: PositiveInt = 2


class FaultsConfig(Section):
    """bad_step: what a loss or gradient that is not finite does, or a loss above spike_factor times its running mean
    (null: no such limit); out_of_memory: halve puts each batch through in parts; max_unreadable: how many images may
    fail to be read, others standing in for them."""

    bad_step: Literal["stop", "skip"] = "stop"
    spike_factor: Annotated[PositiveFloat, Field(gt=1)] | None = None
    out_of_memory: Literal["stop", "halve"] = "stop"
    max_unreadable: NonNegativeInt = 0


class EvaluationConfig(Section):
    """flip and scales: test-time augmentation, each image seen at every scale and mirrored too (so many times the
    work), the boxes of all views suppressed together."""

    backend: Literal["hotcoco", "pycocotools"] = "hotcoco"
    score_threshold: UnitFloat = 0.05
    nms_iou: UnitFloat = 0.5
    candidates_per_level: PositiveInt = 1000
    max_detections: Annotated[PositiveInt, Field(gt=10)] = 100
    flip: Annotated[bool, Field(strict=True)] = False
    scales: Annotated[PositiveFloats, AfterValidator(_with_plain_view)] = [1.0]
    batch_size: PositiveInt = 16

    @property
    def postprocessing(self) -> dict[str, float | int]:
        """What turns one view's predictions into detections."""
        return self.model_dump(include={"score_threshold", "nms_iou", "candidates_per_level", "max_detections"})


class Config(Section):
    imports: list[Module] = []  # first, since fields are validated in order and parts may be registered there
    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    assigner: _part(ASSIGNERS, "max_iou") = "max_iou"
    anchor_sampler: _part(ANCHOR_SAMPLERS, "all") = "all"
    loss: LossConfig = Field({}, validate_default=True)  # not LossConfig(), as the parts register later
    train: TrainConfig = Field(default_factory=TrainConfig)
    faults: FaultsConfig = Field(default_factory=FaultsConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    @model_validator(mode="after")
    def _sensible_together(self, info: ValidationInfo) -> Self:
        if info.context == FOR_INFERENCE:
            return self
        loss, sampler = self.loss.classification["type"], self.anchor_sampler["type"]
        if getattr(CLASSIFICATION_LOSSES.get(loss), "mines", False) and sampler != "all":
            reason = f"{loss} chooses its anchors itself, by their loss; set anchor_sampler: all, or another loss"
            raise InvalidValues({("anchor_sampler",): f"{sampler!r} is wrong: {reason}"})
        if self.train.compile and not isinstance(self.data.short_side, int):
            reason = "every image size is compiled anew; set data.short_side to one number"
            raise InvalidValues({("train", "compile"): f"True is wrong: {reason}"})
        if self.assigner.get("background", 0) > self.assigner.get("foreground", 1):
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


def read_values(path_or_name: str, search: Path = CONFIGS) -> dict[str, Any]:
    """What a file says over its `base` files, as plain values not yet checked. Raises UserError."""
    return _read_file(_locate(path_or_name, search))


def config_from_text(text: str, source: str, overrides: Sequence[str] = (), *, for_inference: bool = False) -> Config:
    """The config that `to_yaml` wrote, e.g. into a checkpoint, with overrides above it. See `make_config`. Raises
    UserError."""
    return _with_overrides(_read_mapping(text, source), overrides, for_inference)


def make_config(values: dict[str, Any], for_inference: bool = False) -> Config:
    """The config that nested plain values make, e.g. those of a checkpoint.

    `for_inference`: the modules of `imports` are not imported, and parts (data sets, assigner, losses) that only they
    have stay unchecked. `with_parts` gives a config whose parts can be built. Raises UserError.
    """
    declare_parts()
    try:
        return parse(Config, values, FOR_INFERENCE if for_inference else None)
    except InvalidValues as error:
        raise UserError(error.line("")) from None


def _with_overrides(values: dict[str, Any], overrides: Sequence[str], for_inference: bool) -> Config:
    declare_parts()
    if not for_inference:  # before the overrides are read, because the types of the parts' parameters must be known
        own_imports = [override for override in overrides if override.partition("=")[0] == "imports"]
        _import_all(merge(values, read_overrides(own_imports, Config)).get("imports"))
    return make_config(merge(values, read_overrides(overrides, Config)), for_inference)


def _import_all(modules: Any) -> None:
    """Import the modules of `imports`. The schema refuses a value that is not a list of texts. Raises UserError."""
    for i, module in enumerate(modules if isinstance(modules, list) else ()):
        if isinstance(module, str):
            try:
                _import(module)
            except ValueError as error:
                raise UserError(f"imports.{i}: {module!r} is wrong: {error}") from None


def with_parts(config: Config, split: str, *, losses: bool = False) -> Config:
    """A config made for inference, whose data set of `split`, assigner and, if asked for, losses can be built.

    The modules of `imports` are imported where these parts need them. Raises UserError where a module is missing."""
    data = config.data.train if config.data.split or split == "train" else config.data.val
    parts = [(DATASETS, data), (ASSIGNERS, config.assigner)]
    if losses:
        parts.append((CLASSIFICATION_LOSSES, config.loss.classification))
    if all(spec["type"] in registry for registry, spec in parts):
        return config
    return make_config(config.model_dump(mode="json"))


def to_yaml(config: Config) -> str:
    """The config with every default filled in, itself a valid file for `load_config`."""
    values = config.model_dump(mode="json")
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


def _locate(path_or_name: str, search: Path) -> Path:
    folder = os.path.dirname(path_or_name)
    stem = Path(os.path.expanduser(path_or_name)) if folder else search / path_or_name
    for path in (stem, Path(f"{stem}.yaml")):
        if path.is_file():
            return path
    _refuse_other_things(Path(os.path.expanduser(path_or_name)))
    known = sorted(path.stem for path in stem.parent.glob("*.yaml"))
    raise UserError(
        f"no config {path_or_name!r} in {stem.parent}{did_you_mean(Path(path_or_name).stem, known) or ';'} "
        f"known: {', '.join(known) or 'none'}" + ("" if folder else f"; a file elsewhere is ./{path_or_name}")
    )


def _refuse_other_things(path: Path) -> None:
    """Raises UserError where the path is a folder or a checkpoint, with the config that was probably meant."""
    is_checkpoint = path.is_file() and path.suffix in (".pt", ".pth")
    if is_checkpoint or path.is_dir():
        folders = (path, path.parent) if path.is_dir() else (path.parent, path.parent.parent)
        found = [folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()]
        what = "a checkpoint, not a config" if is_checkpoint else "a folder, not a config"
        where = found[0] if found else "a YAML file, as the config.yaml of a run"
        raise UserError(f"{path}: {what}; give {where}" + (f", or --checkpoint {path}" if is_checkpoint else ""))


def _read_file(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file over those of its bases; `below` are the files that led here."""
    files = (*below, path.resolve())
    if path.resolve() in below:
        raise UserError(f"{path}: base files lead back to it: {' -> '.join(file.name for file in files)}")
    _refuse_other_things(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a config: {error}") from None
    values = _read_mapping(text, str(path))
    bases = values.pop("base", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: base: {bases!r} is wrong: should be a file or a list of files")
    merged: dict[str, Any] = {}
    for base in bases:
        file = path.parent / os.path.expanduser(base)
        if not file.is_file():
            raise UserError(f"{path}: base: no file {file}")
        merged = merge(merged, _read_file(file, files))
    return merge(merged, values)


def _read_mapping(text: str, source: str) -> dict[str, Any]:
    values = read_yaml(text, source)
    if values is None:  # an empty file
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{source}: should hold keys and values, not {values!r}")
    return values
