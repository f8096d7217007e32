"""Configs and checkpoints of version 0.1."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import assert_same, first_batches, make_trainer

from detector.config import load_config, make_config
from detector.core.errors import UserError
from detector.deploy.predict import Detector
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.engine.trainer import Trainer
from detector.old_versions import upgrade_config

RUN = ("imports=[]", "model.backbone={type: resnet18, norm: group, trainable_stages: 5}")
RUN += ("train.accumulation=1", "loss.classification={type: ghm_c, power: 1.0}", "loss.box={type: ghm_r, power: 1.0}")
NAMES = {"neck.": "fpn.", "head.class_branch.": "class_head.", "head.box_branch.": "box_head.", "boxes.0.": "box."}
MODEL = """
backbone: resnet18
norm: group
weights: null
trainable_stages: 5
levels: [3, 4]
width: 16
head_depth: 1
head_norm: none
prior: 0.01
anchor_sizes: [[12.0, 18.0], [26.0, 40.0]]
anchor_ratios: [0.5, 1.0, 2.0]
stride_in_1x1: false
pyramid_top: p5
pyramid_relu: true
exact_anchors: false
"""

AUGMENT = {"horizontal_flip": 0.5, "vertical_flip": 0.0, "scale": [1.0, 1.0], "translate": 0.0, "min_visibility": 0.1}
AUGMENT |= {"brightness": 0.2, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def old_names(state: dict[str, Any]) -> dict[str, Any]:
    renamed = {}
    for name, value in state.items():
        new = next((prefix for prefix in NAMES if name.startswith(prefix)), "")
        renamed[NAMES.get(new, "") + name.removeprefix(new)] = value
    return renamed


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    trainer = make_trainer(tmp_path_factory.mktemp("run"), *RUN)
    trainer.step(first_batches(trainer, 1))
    trainer.save("last")
    return trainer


@pytest.fixture
def old(trainer: Trainer, tmp_path: Path) -> Path:
    """The checkpoint of the run, in the format of version 0.1."""
    contents = load_checkpoint(trainer.folder / "checkpoints/last.pt")
    config = yaml.safe_load(contents["config"])
    config["model"] = yaml.safe_load(MODEL)
    config["data"]["augment"] = AUGMENT
    del config["data"]["transforms"]
    for key in ("backbone_lr_scale", "decay_norms_and_biases", "loggers"):
        del config["train"][key]
    for key in ("classification", "box"):
        del config["loss"][key]["power"]
    training = contents["training"]
    criterion = {name: x.max() if name.endswith(".steps") else x for name, x in training["criterion"].items()}
    groups = [{k: v for k, v in group.items() if k != "lr_scale"} for group in training["optimizer"]["param_groups"]]
    contents |= {
        "version": 2,
        "config": yaml.safe_dump(config),
        "model": old_names(contents["model"]),
        "training": training
        | {
            "model": old_names(training["model"]),
            "criterion": old_names(criterion),
            "optimizer": training["optimizer"] | {"param_groups": groups},
        },
    }
    assert "fpn.lateral.0.weight" in contents["model"] and "box.density.steps" in contents["training"]["criterion"]
    save_checkpoint(tmp_path / "last.pt", contents)
    return tmp_path / "last.pt"


def test_an_old_checkpoint_has_the_contents_of_a_new_checkpoint(trainer: Trainer, old: Path):
    upgraded, expected = load_checkpoint(old), load_checkpoint(trainer.folder / "checkpoints/last.pt")
    configs = [yaml.safe_load(contents.pop("config")) for contents in (upgraded, expected)]
    del configs[1]["train"]["loggers"]  # a resumed run may have other loggers
    assert configs[0] == configs[1]
    for contents in (upgraded, expected):
        for owner, name in ((contents, "model"), (contents["training"], "model"), (contents["training"], "criterion")):
            owner[name] = dict(owner[name])  # the types of the mappings differ
    assert_same(upgraded, expected)


def test_an_old_run_resumes_without_a_warning(old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    other = make_trainer(tmp_path / "new", *RUN)
    other.resume(load_checkpoint(old), old)
    assert other.steps_done == 1 and not caplog.text


def test_an_old_checkpoint_can_be_loaded_as_weights_and_as_a_detector(trainer: Trainer, old: Path, tmp_path: Path):
    loaded = make_trainer(tmp_path / "new", *RUN, f"model.weights={old}").model.state_dict()
    detector = Detector.load(old, device="cpu").model.state_dict()
    for state in (loaded, detector):
        assert_same(dict(state), dict(trainer.model.state_dict()))


def test_the_error_for_old_keys_contains_the_new_keys(tmp_path: Path):
    text = "data: {train: synthetic, val: synthetic}\nmodel: {backbone: resnet34, norm: group, prior: null}\n"
    (tmp_path / "old.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_config(str(tmp_path / "old.yaml"), ["model.head_depth=2"])
    replacements = {"norm": "backbone.norm", "head_depth": "head.depth", "prior": "head.prior"}
    for old, new in replacements.items():
        assert f"model.{old}" in error.value.problem and f"model.{new}" in error.value.remedy
    values = yaml.safe_load(text)
    upgraded, _ = upgrade_config(values)
    assert upgraded["model"] == {
        "backbone": {"type": "resnet34", "norm": "group"},
        "head": {"type": "anchors", "prior": None},
    }
    assert values == yaml.safe_load(text), "the given values are not changed"


@pytest.mark.parametrize(
    ("augment", "types"),
    [
        ({}, ["flip"]),
        (AUGMENT, ["flip", "color"]),
        ({"horizontal_flip": 0, "scale": [1, 1]}, []),
        ({"translate": 0.1, "hue": 0.1}, ["flip", "affine", "color"]),
    ],
)
def test_the_error_for_the_old_augmentation_contains_the_new_transforms(augment: dict, types: list[str]):
    data = {"train": "synthetic", "val": "synthetic"}
    with pytest.raises(UserError) as refused:
        make_config({"data": data | {"augment": augment}})
    value = refused.value.remedy.partition("data.transforms: ")[2]
    assert refused.value.problem.startswith("data.augment: ")
    transforms = make_config({"data": data | {"transforms": yaml.safe_load(value)}}).data.transforms
    assert [part.type for part in transforms] == types
