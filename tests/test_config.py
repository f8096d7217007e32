"""Configs: the schema, overrides, files with bases, imports, and the round trip through YAML."""

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


# Parts for these tests, registered under names that no other part has (`PARTS`)
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


def refusal(path_or_name: str, *overrides: str, search: Path) -> UserError:
    """Return the error of a config that cannot be loaded."""
    with pytest.raises(UserError) as error:
        load_config(path_or_name, overrides, search)
    assert len(str(error.value).splitlines()) == 1
    return error.value


def assert_names(error: UserError, where: str, *facts: str) -> None:
    """Assert that an error begins with a key or a file, and contains facts such as a value or a known name."""
    assert error.problem.startswith((f"{where}: ", f"{where}, ")), error
    assert all(fact in str(error) for fact in facts), error


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
  warmup: null
  warmup_steps: 500
  box: {type: smooth_l1, beta: 0.1111111111111111}
  box_weight: 1
  normaliser: global
  box_rows: equal
  quality_weight: 1
  one_to_many_weight: [0.8, 0.1]
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
    ("override", "key", "facts"),
    [
        ("trian.lr=1", "trian", ("'train'?",)),
        ("train.lrr=1", "train.lrr", ("'lr'?",)),
        ("data.transforms=[{type: color, hui: 0.1}]", "data.transforms.0.hui", ("'hue'?",)),
        ("data.transforms=[flip, colr]", "data.transforms.1.type", ("'colr'", "'color'?")),
        ("data.transforms=flip", "data.transforms", ("'flip'", "array")),
        ("data.transforms.0.hue=0.1", "data.transforms", ("{'0': {'hue': 0.1}}", "array")),
        (
            "data.augment={vertical_flip: 0.5, scale: [0.5, 1], hue: 0.0}",
            "data.augment",
            ("data.transforms: [{type: flip, horizontal: 0.5, vertical: 0.5}, {type: affine, scale: [0.5, 1]}]",),
        ),
        (
            "base=x.yaml",
            "base",
            ("imports, data, model, assigner, anchor_sampler, loss, train, faults, evaluation",),
        ),
        ("train.lr=fast", "train.lr", ("'fast'", "number")),
        ("train.lr=", "train.lr", ("None", "number")),
        ("train.lr.x=1", "train.lr", ("{'x': 1}", "number")),
        ("train=3", "train", ("3", "object")),
        ("evaluation.scales=[0.8]", "evaluation.scales", ("[0.8]", "1.0")),
        ("evaluation.scales=[1.0, 0.0]", "evaluation.scales.1", ("0.0", "greater than 0")),
        ("train.epochs=1.0", "train.epochs", ("1.0", "integer")),
        ("train.epochs=true", "train.epochs", ("True", "integer")),
        ("train.seed=true", "train.seed", ("True", "integer")),
        ("train.channels_last=no", "train.channels_last", ("'no'", "boolean", "'auto'")),
        ("train.channels_last=1", "train.channels_last", ("1", "boolean", "'auto'")),
        ("train.optimizer=sdg", "train.optimizer", ("'sdg'", "'sgd'", "'adamw'")),
        ("train.lr=.inf", "train.lr", ("inf", "finite")),
        ("data.transforms=[{type: color, hue: .nan}]", "data.transforms.0.hue", ("nan", "finite")),
        ("data.transforms=[{type: color, hue: 0.6}]", "data.transforms.0.hue", ("0.6", "0.5")),
        ("data.num_workers=-1", "data.num_workers", ("-1", "equal to 0", "'auto'")),
        ("data.short_side=[600]", "data.short_side.1", ()),
        ("data.short_side=[9, 1]", "data.short_side", ("[9, 1]", "integer")),
        ("data.short_side=wide", "data.short_side", ("'wide'", "integer", "array")),
        ("data.train=test_foldr", "data.train.type", ("'test_foldr'", "'test_folder'?")),
        ("data.train.image=x", "data.train.image", ("'images'?",)),
        ("loss.classification.gama=1", "loss.classification.gama", ("'gamma'?",)),
        ("loss.classification=null", "loss.classification", ("None",)),
        ("model.levels=[5, 3]", "model.levels", ("[5, 3]",)),
        ("model.levels=[1, 7]", "model.levels.0", ("1", "equal to 2")),
        ("model.levels=[3, 8]", "model.levels.1", ("8", "equal to 7")),
        ("model.backbone.trainable_stages=6", "model.backbone.trainable_stages", ("6", "equal to 5")),
        ("model.head.prior=0", "model.head.prior", ("0", "greater than 0")),
        ("model.head.prior=1", "model.head.prior", ("1", "less than 1")),
        ("model.head.sizes=[[8], [-1]]", "model.head.sizes.1.0", ("-1", "greater than 0")),
        (
            "model={norm: group, head_depth: 2}",
            "model.norm",
            ("model.head_depth", "model.backbone.norm", "model.head.depth"),
        ),
        ("model.head.ratios=[]", "model.head.ratios", ("[]", "1")),
    ],
)
def test_the_error_for_a_wrong_value_names_the_key_the_value_and_the_limit(configs, override, key, facts):
    assert_names(refusal("base", override, search=configs), key, *facts)


def test_an_empty_mapping_changes_nothing(configs):
    assert load_config("base", ["loss.classification={}"], configs) == load_config("base", search=configs)


def test_the_error_counts_the_other_problems_also_in_parts(configs):
    overrides = ["train.lr=x", "train.epochs=0", "loss.classification={gama: 1, alpha: 3}"]
    error = refusal("base", *overrides, search=configs)
    assert_names(error, "loss.classification.alpha", "3", "equal to 1", "(and 3 more)")


def test_data_is_required():
    for values, key in (({}, "data"), ({"data": {}}, "data.train")):
        with pytest.raises(UserError) as error:
            make_config(values)
        assert_names(error.value, key)


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


def test_a_value_may_contain_an_equals_sign(configs):
    assert load_config("base", ["data.train.images=a=b"], configs).data.train.parameters["images"] == "a=b"


@pytest.mark.parametrize("override", ["train.lr", "=1", "train..lr=1", ".lr=1", "train.=1"])
def test_the_error_for_a_malformed_override_contains_it(configs, override):
    error = refusal("base", override, search=configs)
    assert repr(override) in error.problem and "key.path=value" in error.remedy


def test_overrides_of_a_type_and_its_parameter_may_have_any_order(configs):
    overrides = ["loss.classification.type=test_binned", "loss.classification.bins=7"]
    for ordered in (overrides, overrides[::-1], ["loss.classification=test_binned", overrides[1]]):
        loss = load_config("base", ordered, configs).loss.classification
        assert loss.to_dict() == {"type": "test_binned", "bins": 7}


def test_an_override_adds_a_parameter_to_a_part_in_the_short_form(configs):
    (term,) = load_config("base", ["loss.box.beta=0.5"], configs).loss.box
    assert term.loss.to_dict() == {"type": "test_box", "beta": 0.5}


def test_the_later_override_of_a_key_is_used(configs):
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


def test_another_type_discards_the_parameters_of_the_bases(configs):
    write(configs, "binned.yaml", "base: base.yaml\nloss: {classification: {type: test_binned}}\n")
    assert load_config("binned", search=configs).loss.classification.to_dict() == {"type": "test_binned", "bins": 30}
    write(configs, "same.yaml", "base: base.yaml\nloss: {classification: {type: test_sharp, alpha: 0.5}}\n")
    expected = {"type": "test_sharp", "gamma": 1.5, "alpha": 0.5}
    assert load_config("same", search=configs).loss.classification.to_dict() == expected


def test_merge_is_pure():
    base, update = {"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}, "e": {"f": 2}}
    assert merge(base, update) == {"a": {"b": 1, "c": [3]}, "d": 1, "e": {"f": 2}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1} and update == {"a": {"c": [3]}, "e": {"f": 2}}


def test_a_base_of_two_bases_is_no_cycle(configs):
    write(configs, "left.yaml", "base: base.yaml\n")
    write(configs, "right.yaml", "base: base.yaml\ntrain: {lr: 7}\n")
    write(configs, "top.yaml", "base: [left.yaml, right.yaml]\n")
    assert load_config("top", search=configs).train.lr == 7


@pytest.mark.parametrize("name", ["base", "base.yaml"])
def test_a_config_is_given_by_its_name_or_its_path(configs, tmp_path, name):
    config = load_config(name, search=configs)
    assert load_config(str(configs / name), search=tmp_path) == config


def test_a_path_in_the_working_folder_needs_its_dot(configs, tmp_path, monkeypatch):
    monkeypatch.chdir(configs)
    elsewhere = tmp_path / "empty"
    elsewhere.mkdir()
    assert load_config("./base.yaml", search=elsewhere) == load_config("base", search=configs)
    error = refusal("base.yaml", search=elsewhere)
    assert str(elsewhere) in error.problem and "./base.yaml" in error.remedy


def test_the_error_for_a_wrong_name_lists_the_known_names(configs, tmp_path):
    write(configs, "small.yaml", "")
    error = refusal("smal.yaml", search=configs)
    assert "'smal.yaml'" in error.problem and str(configs) in error.problem
    assert "'small'?" in error.remedy and "base, small" in error.remedy
    error = refusal(f"{configs}/zip", search=tmp_path)
    assert f"'{configs}/zip'" in error.problem and "base, small" in error.remedy and "./" not in error.remedy
    assert "none" in refusal(f"{tmp_path}/none/zip", search=configs).remedy


def test_the_default_folder_is_that_of_the_packaged_configs():
    assert str(CONFIGS) in pytest.raises(UserError, load_config, "no such config").value.problem


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", ("line 4: ", "'c'")),
        ("1: a\n'1': b\n", ("line 2: ", "'1'")),
        ("? [a]\n: 1\n", ("line 1: ",)),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", ("line 2: ", "(!)", "quotes")),
        ("a: !!int x\n", ("line 1: ", "(!)", "quotes")),
        ("a: &x [*x]\n", ("line 1: ", "(&)", "quotes")),
        ("a: *.jpg\n", ("line 1: ", "(*)", "quotes")),
        ("a: [1\nb: 2\n", ("line 2: ",)),
        ("a: 1\n---\nb: 2\n", ("line 2: ",)),
        ("a: \x01\n", ("#x0001",)),
        ("- a\n", ("['a']",)),
        ("base: 3\n", ("base: ", "3")),
        ("base: [base.yaml, {}]\n", ("base: ", "['base.yaml', {}]")),
        ("base: none.yaml\n", ("base: ", "none.yaml")),
        ("base: wrong.yaml\n", ("base: ", "wrong.yaml -> wrong.yaml")),
    ],
)
def test_the_error_for_an_invalid_file_names_the_file_and_the_line(configs, text, facts):
    path = write(configs, "wrong.yaml", text)
    error = refusal("wrong", search=configs)
    assert_names(error, path, *facts)
    assert error.remedy


def test_the_error_for_a_cycle_contains_all_its_files(configs):
    write(configs, "one.yaml", "base: two.yaml\n")
    write(configs, "two.yaml", "base: one.yaml\n")
    assert_names(refusal("one", search=configs), f"{configs}/one.yaml", "one.yaml -> two.yaml -> one.yaml")


def test_the_error_for_a_file_that_is_not_text_names_it(configs):
    (configs / "wrong.yaml").write_bytes(b"\xff\xfe\x00")
    assert_names(refusal("wrong", search=configs), f"{configs}/wrong.yaml")


def test_an_empty_file_lacks_the_data(configs):
    write(configs, "empty.yaml", "# only a comment\n")
    assert_names(refusal("empty", search=configs), "data")


# Imports


def test_imports_register_parts_of_the_user(configs, tmp_path, monkeypatch):
    package = tmp_path / "test_imports_package"
    write(package, "__init__.py", "")
    write(
        package,
        "losses.py",
        "from detector.losses import CLASSIFICATION_LOSSES\n\n"
        "@CLASSIFICATION_LOSSES.register('test_user')\ndef user_loss(*, power: int = 4): ...\n",
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = "base: base.yaml\nloss: {classification: test_user}\nimports: [test_imports_package.losses]\n"
    write(configs, "user.yaml", text)
    config = load_config("user", search=configs)
    assert config.loss.classification.to_dict() == {"type": "test_user", "power": 4}
    assert config.imports == ["test_imports_package.losses"]


@pytest.mark.parametrize(
    ("override", "key", "facts"),
    [
        ("imports=[no_such.part]", "imports.0", ("'no_such.part'", "'no_such'", "PYTHONPATH")),
        ("imports=['.part']", "imports.0", ("'.part'",)),
        ("imports=['']", "imports.0", ("''",)),
        ("imports=os", "imports", ("'os'", "array")),
    ],
)
def test_the_error_for_an_import_that_fails_names_the_module(configs, override, key, facts):
    assert_names(refusal("base", override, search=configs), key, *facts)


def test_a_module_whose_import_failed_can_be_imported_later(configs, tmp_path, monkeypatch):
    """The module has registered its part before its import fails."""
    source = (
        "import builtins\nfrom detector.losses import BOX_LOSSES\n\nbuiltins.test_imports_runs += 1\n\n"
        "@BOX_LOSSES.register('test_half')\ndef half(*, power: int = 4): ...\n\nimport test_imports_missing\n"
    )
    write(tmp_path, "test_imports_half.py", source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(builtins, "test_imports_runs", 0, raising=False)
    write(configs, "half.yaml", "base: base.yaml\nloss: {box: test_half}\nimports: [test_imports_half]\n")
    assert_names(refusal("half", search=configs), "imports.0", "test_imports_missing")
    assert builtins.test_imports_runs == 1
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
def test_the_yaml_of_a_config_loads_as_the_same_config(configs, tmp_path, overrides):
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
    assert yaml.safe_load(saved)["model"]["weights"] == text  # also by the rules of version 1.1, which PyYAML uses
