import builtins
import importlib
from pathlib import Path

import pytest
import yaml

import detector.build  # noqa: F401  (registers the parts that the defaults name)
from detector.config import Config, load_config, make_config, merge, to_yaml
from detector.core.config_files import CONFIGS
from detector.core.errors import UserError
from detector.core.validation import NonNegativeFloat, PositiveInt, UnitFloat
from detector.data.dataset import DATASETS
from detector.geometry.assignment.base import ASSIGNERS
from detector.losses.base import BOX_LOSSES, CLASSIFICATION_LOSSES


# Parts of these tests alone, under names that no real part has: see `PARTS`.
class Folder:
    def __init__(self, *, images: Path, limit: PositiveInt | None = None, sides: tuple[int, ...] = (1, 2)): ...


class Empty:
    def __init__(self): ...


class Sharp:
    def __init__(self, num_classes: int, *, gamma: NonNegativeFloat = 2.0, alpha: UnitFloat = 0.25): ...


class Binned:
    def __init__(self, *, bins: PositiveInt = 30): ...


class BoxLoss:
    def __init__(self, *, beta: UnitFloat = 0.1): ...


class Assigner:
    def __init__(self, *, threshold: UnitFloat = 0.5): ...


PARTS = (
    (DATASETS, "test_folder", Folder),
    (DATASETS, "test_empty", Empty),
    (CLASSIFICATION_LOSSES, "test_sharp", Sharp),
    (CLASSIFICATION_LOSSES, "test_binned", Binned),
    (BOX_LOSSES, "test_box", BoxLoss),
    (ASSIGNERS, "test_assigner", Assigner),
)


@pytest.fixture(scope="module", autouse=True)
def parts(registered_parts: None) -> None:
    for registry, name, owner in PARTS:
        registry.register(name)(owner)


BASE = """\
data:
  train: {type: test_folder, images: train}
  val: {type: test_folder, images: val}
assigner: test_assigner
loss:
  classification: {type: test_sharp, gamma: 1.5}
  box: test_box
"""


@pytest.fixture
def configs(tmp_path) -> Path:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "base.yaml").write_text(BASE)
    return folder


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def refusal(path_or_name: str, *overrides: str, search: Path) -> str:
    with pytest.raises(UserError) as error:
        load_config(path_or_name, overrides, search)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# Schema

DEFAULTS = """
imports: []
data:
  root: .
  train: {type: test_folder, images: a, limit: null, sides: [1, 2]}
  val: {type: test_empty}
  split: null
  split_seed: 0
  invalid: error
  keep_empty: true
  sampler: {type: uniform}
  short_side: 800
  long_side: 1333
  bits: auto
  aspect_buckets: 4
  num_workers: auto
  cache: null
  transforms: [{type: flip, horizontal: 0.5, vertical: 0}]
model:
  backbone: {type: resnet50, norm: frozen, trainable_stages: 3, stride_in_1x1: false}
  weights: null
  levels: [3, 7]
  width: 256
  pyramid_top: p5
  pyramid_relu: true
  head: {type: anchors, depth: 4, norm: none, prior: 0.01, sizes: null, ratios: [0.5, 1, 2], exact: false}
assigner: {type: max_iou, foreground: 0.5, background: 0.4, low_quality: true}
anchor_sampler: {type: all}
loss:
  classification:
    {type: focal, alpha: 0.25, gamma: 2, rescale: false, class_weights: null, class_counts: null, beta: 0.9999}
  box: {type: smooth_l1, beta: 0.1111111111111111}
  box_weight: 1
  normaliser: global
train: {epochs: 12, batch_size: 16, accumulation: 1, seed: 0, device: auto, precision: auto, optimizer: sgd, lr: 0.01,
        weight_decay: 0.0001, momentum: 0.9, backbone_lr_scale: 1,
        decay_norms_and_biases: false, schedule: step, milestones: [0.6667, 0.8889], step_factor: 0.1,
        warmup_steps: 500, warmup_factor: 0.001, clip_norm: null, ema_decay: null, compile: false, channels_last: auto,
        evaluate_every: 1, log_every: 20, meter_every: 20, save_every: 1000, keep_checkpoints: 2,
        loggers: [{type: csv}, {type: tensorboard}]}
faults: {bad_step: stop, spike_factor: null, out_of_memory: stop, max_unreadable: 0}
evaluation: {backend: hotcoco, score_threshold: 0.05, nms_iou: 0.5, candidates_per_level: 1000, max_detections: 100,
             flip: false, scales: [1], batch_size: 16}
"""


def test_defaults():
    config = make_config({"data": {"train": {"type": "test_folder", "images": "a"}, "val": "test_empty"}})
    assert yaml.safe_load(to_yaml(config)) == yaml.safe_load(DEFAULTS)


def test_sections_are_frozen_and_typed(configs):
    config = load_config("base", search=configs)
    assert isinstance(config, Config)
    assert config.data.root == Path(".") and config.model.levels == (3, 7)
    assert config.loss.classification.to_dict() == {"type": "test_sharp", "gamma": 1.5, "alpha": 0.25}
    assert config.data.train.to_dict() == {"type": "test_folder", "images": "train", "limit": None, "sides": [1, 2]}
    with pytest.raises(ValueError, match="frozen"):
        config.train.lr = 1.0


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("trian.lr=1", "trian: unknown key; did you mean 'train'?"),
        ("train.lrr=1", "train.lrr: unknown key; did you mean 'lr'?"),
        ("data.transforms=[{type: color, hui: 0.1}]", "data.transforms.0.hui: unknown key; did you mean 'hue'?"),
        ("data.transforms=[flip, colr]", "data.transforms.1.type: no transform 'colr'; did you mean 'color'?"),
        ("data.transforms=flip", "data.transforms: 'flip' is wrong: should be a valid array"),
        ("data.transforms.0.hue=0.1", "data.transforms: {'0': {'hue': 0.1}} is wrong: should be a valid array"),
        (
            "data.augment={vertical_flip: 0.5, scale: [0.5, 1], hue: 0.0}",
            "data.augment: write data.transforms: [{type: flip, horizontal: 0.5, vertical: 0.5}, "
            "{type: affine, scale: [0.5, 1]}]",
        ),
        (
            "base=x.yaml",
            "base: unknown key; known: imports, data, model, assigner, anchor_sampler, loss, train, faults, evaluation",
        ),
        ("train.lr=fast", "train.lr: 'fast' is wrong: should be a valid number"),
        ("train.lr=", "train.lr: None is wrong: should be a valid number"),
        ("train.lr.x=1", "train.lr: {'x': 1} is wrong: should be a valid number"),
        ("train=3", "train: 3 is wrong: should be an object"),
        ("evaluation.scales=[0.8]", "evaluation.scales: [0.8] is wrong: should contain 1.0"),
        ("evaluation.scales=[1.0, 0.0]", "evaluation.scales.1: 0.0 is wrong: should be greater than 0"),
        ("train.epochs=1.0", "train.epochs: 1.0 is wrong: should be a valid integer"),
        ("train.epochs=true", "train.epochs: True is wrong: should be a valid integer"),
        ("train.seed=true", "train.seed: True is wrong: should be a valid integer"),
        ("train.channels_last=no", "train.channels_last: 'no' is wrong: should be a valid boolean, or 'auto'"),
        ("train.channels_last=1", "train.channels_last: 1 is wrong: should be a valid boolean, or 'auto'"),
        ("train.optimizer=sdg", "train.optimizer: 'sdg' is wrong: should be 'sgd' or 'adamw'"),
        ("train.lr=.inf", "train.lr: inf is wrong: should be a finite number"),
        (
            "data.transforms=[{type: color, hue: .nan}]",
            "data.transforms.0.hue: nan is wrong: should be a finite number",
        ),
        (
            "data.transforms=[{type: color, hue: 0.6}]",
            "data.transforms.0.hue: 0.6 is wrong: should be less than or equal to 0.5",
        ),
        ("data.num_workers=-1", "data.num_workers: -1 is wrong: should be greater than or equal to 0, or 'auto'"),
        ("data.short_side=[600]", "data.short_side.1: required, and missing"),
        (
            "data.short_side=[9, 1]",
            "data.short_side: [9, 1] is wrong: should be a valid integer, or in order, the lower bound first",
        ),
        ("data.short_side=wide", "data.short_side: 'wide' is wrong: should be a valid integer, or a valid array"),
        ("data.train=test_foldr", "data.train.type: no data set 'test_foldr'; did you mean 'test_folder'? known:"),
        ("data.train.image=x", "data.train.image: unknown key; did you mean 'images'?"),
        ("loss.classification.gama=1", "loss.classification.gama: unknown key; did you mean 'gamma'?"),
        ("loss.classification={}", None),
        ("loss.classification=null", "loss.classification: None is wrong: should be a mapping with a type"),
        ("model.levels=[5, 3]", "model.levels: [5, 3] is wrong: should be in order, the lower bound first"),
        ("model.levels=[1, 7]", "model.levels.0: 1 is wrong: should be greater than or equal to 2"),
        ("model.levels=[3, 8]", "model.levels.1: 8 is wrong: should be less than or equal to 7"),
        (
            "model.backbone.trainable_stages=6",
            "model.backbone.trainable_stages: 6 is wrong: should be less than or equal to 5",
        ),
        ("model.head.prior=0", "model.head.prior: 0 is wrong: should be greater than 0"),
        ("model.head.prior=1", "model.head.prior: 1 is wrong: should be less than 1"),
        ("model.head.sizes=[[8], [-1]]", "model.head.sizes.1.0: -1 is wrong: should be greater"),
        ("model={norm: group, head_depth: 2}", "model.norm: write model.backbone.norm; model.head_depth: write model"),
        ("model.head.ratios=[]", "model.head.ratios: [] is wrong: Tuple should have at least 1 item"),
    ],
)
def test_a_wrong_value_gets_one_line_that_names_the_key(configs, override, line):
    if line is None:  # an empty mapping changes nothing
        assert load_config("base", [override], configs) == load_config("base", search=configs)
    else:
        assert refusal("base", override, search=configs).startswith(line)


def test_the_line_counts_the_other_problems_parts_included(configs):
    overrides = ["train.lr=x", "train.epochs=0", "loss.classification={gama: 1, alpha: 3}"]
    line = refusal("base", *overrides, search=configs)
    assert line == "loss.classification.alpha: 3 is wrong: should be less than or equal to 1 (and 3 more)"


def test_data_is_required():
    with pytest.raises(UserError, match="^data: required, and missing"):
        make_config({})
    with pytest.raises(UserError, match="^data.train: required, and missing"):
        make_config({"data": {}})


# Overrides


def test_overrides_are_read_as_yaml(configs):
    overrides = [
        "train.lr=1e-3", "train.clip_norm=35", "train.milestones=[0.5, 1]", "model.head.prior=null",
        "data.root=2024-01-31",
        "data.short_side=[640, 800]", "loss.classification={type: test_binned, bins: 010}", "train.ema_decay=",
    ]  # fmt: skip
    config = load_config("base", overrides, configs)
    assert (config.train.lr, config.train.clip_norm, config.train.milestones) == (0.001, 35.0, [0.5, 1.0])
    assert (config.model.head.parameters["prior"], config.train.ema_decay) == (None, None)
    assert config.data.root == Path("2024-01-31")
    assert config.data.short_side == (640, 800)
    assert config.loss.classification.to_dict() == {"type": "test_binned", "bins": 10}


def test_a_value_may_hold_an_equals_sign(configs):
    assert load_config("base", ["data.train.images=a=b"], configs).data.train.parameters["images"] == "a=b"


@pytest.mark.parametrize("override", ["train.lr", "=1", "train..lr=1", ".lr=1", "train.=1"])
def test_an_override_that_is_none_is_shown(configs, override):
    assert refusal("base", override, search=configs) == f"override {override!r}: should read key.path=value"


def test_a_type_and_its_parameter_may_be_overridden_in_either_order(configs):
    overrides = ["loss.classification.type=test_binned", "loss.classification.bins=7"]
    for ordered in (overrides, overrides[::-1], ["loss.classification=test_binned", overrides[1]]):
        loss = load_config("base", ordered, configs).loss.classification
        assert loss.to_dict() == {"type": "test_binned", "bins": 7}


def test_a_parameter_joins_a_type_given_alone(configs):
    (term,) = load_config("base", ["loss.box.beta=0.5"], configs).loss.box
    assert term.loss.to_dict() == {"type": "test_box", "beta": 0.5}


def test_the_later_override_wins(configs):
    assert load_config("base", ["train.lr=1", "train.lr=2"], configs).train.lr == 2


# Files


def test_base_files_are_merged_in_order_below_the_file(configs):
    write(configs, "bases/one.yaml", "base: ../base.yaml\ntrain: {lr: 1, epochs: 1}\nmodel: {head: {ratios: [1]}}\n")
    write(configs, "bases/two.yaml", "train: {epochs: 2, batch_size: 2}\n")
    write(configs, "top.yaml", "base: [bases/one.yaml, bases/two.yaml]\ntrain: {batch_size: 3}\n")
    config = load_config("top", search=configs)
    assert (config.train.lr, config.train.epochs, config.train.batch_size) == (1, 2, 3)
    assert config.model.head.parameters["ratios"] == [1.0]
    assert config.loss.classification.parameters["gamma"] == 1.5


def test_another_type_leaves_the_parameters_of_the_bases_behind(configs):
    write(configs, "binned.yaml", "base: base.yaml\nloss: {classification: {type: test_binned}}\n")
    assert load_config("binned", search=configs).loss.classification.to_dict() == {"type": "test_binned", "bins": 30}
    write(configs, "same.yaml", "base: base.yaml\nloss: {classification: {type: test_sharp, alpha: 0.5}}\n")
    expected = {"type": "test_sharp", "gamma": 1.5, "alpha": 0.5}
    assert load_config("same", search=configs).loss.classification.to_dict() == expected


def test_merge_is_pure():
    base, update = {"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}, "e": {"f": 2}}
    assert merge(base, update) == {"a": {"b": 1, "c": [3]}, "d": 1, "e": {"f": 2}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1} and update == {"a": {"c": [3]}, "e": {"f": 2}}


def test_a_file_that_is_twice_below_is_no_cycle(configs):
    write(configs, "left.yaml", "base: base.yaml\n")
    write(configs, "right.yaml", "base: base.yaml\ntrain: {lr: 7}\n")
    write(configs, "top.yaml", "base: [left.yaml, right.yaml]\n")
    assert load_config("top", search=configs).train.lr == 7


@pytest.mark.parametrize("name", ["base", "base.yaml"])
def test_a_name_is_looked_up_and_a_path_is_opened(configs, tmp_path, name):
    config = load_config(name, search=configs)
    assert load_config(str(configs / name), search=tmp_path) == config


def test_a_path_in_the_working_directory_needs_its_dot(configs, tmp_path, monkeypatch):
    monkeypatch.chdir(configs)
    elsewhere = tmp_path / "empty"
    elsewhere.mkdir()
    assert load_config("./base.yaml", search=elsewhere) == load_config("base", search=configs)
    line = refusal("base.yaml", search=elsewhere)
    assert line == f"no config 'base.yaml' in {elsewhere}; known: none; a file elsewhere is ./base.yaml"


def test_a_wrong_name_gets_the_known_ones(configs, tmp_path):
    write(configs, "small.yaml", "")
    line = refusal("smal.yaml", search=configs)
    assert line.startswith(f"no config 'smal.yaml' in {configs}; did you mean 'small'? known: base, small;")
    assert refusal(f"{configs}/zip", search=tmp_path) == f"no config '{configs}/zip' in {configs}; known: base, small"
    assert refusal(f"{tmp_path}/none/zip", search=configs).endswith("known: none")


def test_the_configs_of_the_repository_are_the_usual_place():
    assert f" in {CONFIGS};" in str(pytest.raises(UserError, load_config, "no such config").value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "line 4: duplicate key 'c'; keep one"),
        ("1: a\n'1': b\n", "line 2: duplicate key '1'; keep one"),
        ("? [a]\n: 1\n", "line 1: a key should be text"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", "line 2: tags (!) have no place here; quote"),
        ("a: !!int x\n", "line 1: tags (!) have no place here; quote"),
        ("a: &x [*x]\n", "line 1: anchors (&) have no place here; quote"),
        ("a: *.jpg\n", "line 1: aliases (*) have no place here; quote"),
        ("a: [1\nb: 2\n", "line 2: "),
        ("a: 1\n---\nb: 2\n", "line 2: "),
        ("a: \x01\n", "unacceptable character #x0001"),
        ("- a\n", "should hold keys and values, not ['a']"),
        ("base: 3\n", "base: 3 is wrong: should be a file or a list of files"),
        ("base: [base.yaml, {}]\n", "base: ['base.yaml', {}] is wrong: should be a file or a list of files"),
        ("base: none.yaml\n", "base: no file "),
        ("base: wrong.yaml\n", "base files lead back to it: wrong.yaml -> wrong.yaml"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(configs, text, line):
    path = write(configs, "wrong.yaml", text)
    assert refusal("wrong", search=configs).startswith(f"{path}: {line}")


def test_a_longer_cycle_is_shown(configs):
    write(configs, "one.yaml", "base: two.yaml\n")
    write(configs, "two.yaml", "base: one.yaml\n")
    line = refusal("one", search=configs)
    assert line == f"{configs}/one.yaml: base files lead back to it: one.yaml -> two.yaml -> one.yaml"


def test_a_file_that_is_not_text_is_named(configs):
    (configs / "wrong.yaml").write_bytes(b"\xff\xfe\x00")
    assert refusal("wrong", search=configs).startswith(f"{configs}/wrong.yaml: cannot be read as a config: ")


def test_an_empty_file_lacks_the_data(configs):
    write(configs, "empty.yaml", "# nothing yet\n")
    assert refusal("empty", search=configs).startswith("data: required, and missing")


# Imports


def test_imports_register_parts_of_the_users_own(configs, tmp_path, monkeypatch):
    package = tmp_path / "test_imports_package"
    write(package, "__init__.py", "")
    write(
        package,
        "losses.py",
        "from detector.losses import CLASSIFICATION_LOSSES\n\n"
        "@CLASSIFICATION_LOSSES.register('test_own')\ndef own(*, power: int = 4): ...\n",
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = "base: base.yaml\nloss: {classification: test_own}\nimports: [test_imports_package.losses]\n"
    write(configs, "own.yaml", text)
    config = load_config("own", search=configs)
    assert config.loss.classification.to_dict() == {"type": "test_own", "power": 4}
    assert config.imports == ["test_imports_package.losses"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("imports=[no_such.part]", "imports.0: 'no_such.part' is wrong: No module named 'no_such'; install it, or put"),
        ("imports=['.part']", "imports.0: '.part' is wrong: should be the dotted name of a module"),
        ("imports=['']", "imports.0: '' is wrong: should be the dotted name of a module"),
        ("imports=os", "imports: 'os' is wrong: should be a valid array"),
    ],
)
def test_an_import_that_fails_is_named(configs, override, line):
    assert refusal("base", override, search=configs).startswith(line)


def test_a_module_that_registers_and_then_fails_runs_once_and_again_when_it_can(configs, tmp_path, monkeypatch):
    source = (
        "import builtins\nfrom detector.losses import BOX_LOSSES\n\nbuiltins.test_imports_runs += 1\n\n"
        "@BOX_LOSSES.register('test_half')\ndef half(*, power: int = 4): ...\n\nimport test_imports_missing\n"
    )
    write(tmp_path, "test_imports_half.py", source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(builtins, "test_imports_runs", 0, raising=False)
    write(configs, "half.yaml", "base: base.yaml\nloss: {box: test_half}\nimports: [test_imports_half]\n")
    line = refusal("half", search=configs)
    assert "imports.0" in line and "test_imports_missing" in line and builtins.test_imports_runs == 1
    assert load_config("half", ["imports=[]", "loss.box=smooth_l1"], configs).imports == []
    write(tmp_path, "test_imports_missing.py", "")
    importlib.invalidate_caches()
    (term,) = load_config("half", search=configs).loss.box
    assert term.loss.to_dict() == {"type": "test_half", "power": 4}


# Round trip


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["loss.classification={type: test_binned, bins: 3}", "loss.box.beta=0.25", "assigner.threshold=1e-7"],
        ["data.train={limit: 3, sides: [4]}", "data.short_side=[640, 800]", "data.num_workers=0", "data.root=/a b/c"],
        ["model={levels: [3, 4], head: {sizes: [[8, 1e-5], [16, 1e16]], prior: null}, weights: 'no'}"],
        ["train={lr: 1e-05, weight_decay: 1e-300, clip_norm: 35, ema_decay: 0.9998, milestones: [], seed: 3}"],
    ],
)
def test_yaml_of_a_config_is_a_config_file_equal_to_it(configs, tmp_path, overrides):
    config = load_config("base", overrides, configs)
    path = write(tmp_path, "resolved.yaml", to_yaml(config))
    assert load_config(path, search=configs) == config
    assert to_yaml(load_config(path, search=configs)) == to_yaml(config)


@pytest.mark.parametrize(
    "text",
    ["no", "on", "true", "Null", "~", "", "1e-4", "1.5", ".5", "010", "0x1f", "1:30", "1_000", ".inf", "2024-01-31",
     "<<", "=", "*.jpg", "&a", "!tag", "a: b", "a #b", "- a", "[a]", "{a}", "'", '"', "\\", " a ", "a\nb\n", "é ü 漢",
     "%a", "@a", "`", "|", ">", "?", "x" * 300, "a b " * 60],
)  # fmt: skip
def test_any_text_survives_the_round_trip(configs, tmp_path, text):
    values = yaml.safe_load(BASE)
    values["model"] = {"weights": text}
    saved = to_yaml(make_config(values))
    assert load_config(write(tmp_path, "resolved.yaml", saved), search=configs).model.weights == text
    assert yaml.safe_load(saved)["model"]["weights"] == text  # and under the older rules of PyYAML itself
