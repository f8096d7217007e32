"""A run that resumes with another config: allowed changes, warnings, refusals, and the effect of new settings."""

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import STEPS_PER_EPOCH, assert_same, make_trainer, rows_of
from tiny import TINY

from detector.build import build_dataset
from detector.config import Config, config_from_text
from detector.core.errors import UserError
from detector.data.checks.fingerprint import fingerprint
from detector.data.dataset import DATASETS
from detector.data.images import write_image
from detector.engine.checkpoint import load_checkpoint
from detector.engine.resume import RULES
from detector.engine.trainer import Trainer

STATEFUL = ("loss.classification={type: ghm_c, bins: 10, momentum: 0.5}", "loss.box=ghm_r", "train.ema_decay=0.9")
Change = Callable[[dict], object]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the last checkpoint of a run that has completed the first of two epochs."""
    folder = tmp_path_factory.mktemp("run")
    trainer = make_trainer(folder, *STATEFUL)
    for batches in trainer.batches(0):
        trainer.step(batches)
    trainer.epochs_done = 1
    trainer.save("last")
    return folder / "checkpoints/last.pt"


def resume(origin: Path, *overrides: str, change: Change | None = None) -> Trainer:
    trainer = make_trainer(origin.parent.parent, *STATEFUL, *overrides)
    checkpoint = load_checkpoint(origin)
    if change is not None:
        change(checkpoint)
    trainer.resume(checkpoint, origin)
    assert trainer.steps_done == STEPS_PER_EPOCH
    return trainer


def refusal(origin: Path, *overrides: str, change: Change | None = None) -> str:
    with pytest.raises(UserError) as error:
        resume(origin, *overrides, change=change)
    assert "\n" not in str(error.value) and origin.name in str(error.value)
    return str(error.value)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def test_settings_that_do_not_change_the_training_may_change_silently(run: Path, caplog: pytest.LogCaptureFixture):
    resume(
        run,
        *("train.log_every=1", "train.save_every=3", "train.keep_checkpoints=3"),
        *("train.evaluate_every=0", "train.meter_every=7", "train.device=auto", "faults.spike_factor=50"),
        *("evaluation.batch_size=3", "data.invalid=skip", "data.keep_empty=false", "imports=[json]"),
        *("data.num_workers=1", "train.loggers=[csv]"),
    )
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    ("overrides", "facts"),
    [
        (["train.epochs=3"], ["train.epochs", "2", "3"]),
        (["train.lr=0.003"], ["train.lr", "0.01", "0.003"]),
        (["train.schedule=cosine"], ["train.schedule", "constant", "cosine"]),
        (["train.clip_norm=1"], ["train.clip_norm", "null", "1.0"]),
        (["train.ema_decay=0.99"], ["train.ema_decay", "0.9", "0.99"]),
        (["train.precision=fp16"], ["train.precision", "fp32", "fp16"]),
        (["data.transforms=[flip, {type: color, hue: 0.1}]"], ["data.transforms.1.hue", "0.0", "0.1"]),
        (["data.transforms=[flip]"], ["data.transforms: ['flip', 'color']", "['flip']"]),
        (["data.short_side=96"], ["data.short_side", "64", "96"]),
        (["loss.box_weight=2", "loss.normaliser=ema"], ["loss.box_weight", "1.0", "2.0", "loss.normaliser", "ema"]),
        (["loss.classification=focal"], ["loss.classification", "ghm_c", "focal"]),
        (["train.batch_size=1", "train.accumulation=4"], ["train.batch_size", "train.accumulation"]),
        (["data.root=elsewhere"], ["data.root", "elsewhere"]),
        (["evaluation.max_detections=50"], ["evaluation.max_detections", "100", "50"]),
        (["evaluation.backend=pycocotools"], ["evaluation.backend", "hotcoco", "pycocotools"]),
    ],
)
def test_settings_that_change_the_training_give_a_warning_with_both_values(
    run: Path, overrides: list[str], facts: list[str], caplog: pytest.LogCaptureFixture
):
    resume(run, *overrides)
    line = warnings_of(caplog)[0]
    assert all(fact in line for fact in facts), line


@pytest.mark.parametrize(
    ("overrides", "facts"),
    [
        (["train.optimizer=adamw"], ["train.optimizer", "sgd", "adamw"]),
        (["train.seed=1"], ["train.seed", "0", "1"]),
        (["train.ema_decay=null"], ["train.ema_decay", "0.9", "null"]),
        (
            ["model.width=24", "model.backbone.norm=batch"],
            ["model.width", "16", "24", "model.backbone.norm", "group", "batch"],
        ),
        (["model.head.sizes=[[12, 18], [26, 44]]"], ["model.head.sizes", "40", "44"]),
        (["model.head.ratios=[0.5, 1, 3]"], ["model.head.ratios", "2.0", "3.0"]),
        (["assigner=atss"], ["assigner", "max_iou", "atss"]),
        (["data.train.distractors=2"], ["data.train.distractors", "1.0", "2.0"]),  # other pictures with the same boxes
        (["data.val.seed=5"], ["data.val.seed", "0", "5"]),
        (["data.train.num_images=13"], ["data.train.num_images", "12", "13"]),
        (["train.batch_size=4"], ["train.batch_size", "2", "4", "3"]),
        (["train.accumulation=1"], ["train.accumulation", "2", "1", "6"]),
        (["data.train.num_classes=7", "data.val.num_classes=7"], ["class_names"]),
        (["train.epochs=1"], ["train.epochs", "2", "1"]),
    ],
)
def test_settings_that_may_not_change_are_refused_with_both_values(run: Path, overrides: list[str], facts: list[str]):
    line = refusal(run, *overrides)
    assert all(fact in line for fact in facts), line


def test_every_rule_has_an_existing_key():
    for key in RULES:
        section = Config
        for name in key.split("."):
            if section is None or name not in getattr(section, "model_fields", {}):
                _, split, parameter = key.split(".")
                assert split in ("train", "val")
                assert any(parameter in DATASETS.parameters(part) for part in DATASETS.names())
                break
            section = section.model_fields[name].annotation


def without_data(checkpoint: dict) -> None:
    del checkpoint["data"]


def test_a_checkpoint_of_an_older_release_resumes(run: Path, caplog: pytest.LogCaptureFixture):
    def older(checkpoint: dict) -> None:
        without_data(checkpoint)
        checkpoint["config"] = checkpoint["config"].replace("split_seed: 0, ", "").replace("  split_seed: 0\n", "")
        assert "split_seed" not in checkpoint["config"]

    resume(run, change=older)
    assert ["data.split_seed" in line for line in warnings_of(caplog)] == [True]
    assert "data.root" in refusal(run, "data.root=elsewhere", change=without_data)


def write_set(folder: Path, change: Callable[[dict], object] | None = None) -> str:
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(1, 13)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 20, 20]} for i in range(1, 13)]
    contents = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    if change is not None:
        change(contents)
    folder.mkdir(exist_ok=True)
    for image in contents["images"]:
        write_image(folder / image["file_name"], np.zeros((64, 64, 3), dtype=np.uint8))
    (folder / "set.json").write_text(json.dumps(contents))
    return f"{{type: coco, images: {folder}, annotations: {folder}/set.json}}"


CHANGES = [
    lambda contents: contents["annotations"][3]["bbox"].__setitem__(2, 21),
    lambda contents: contents["annotations"][3].update(iscrowd=1),
    lambda contents: contents["annotations"].pop(),
    lambda contents: contents["images"][3].update(file_name="other.png"),
    lambda contents: contents["images"].reverse(),
]


@pytest.mark.parametrize(("split", "change"), [*(("train", change) for change in CHANGES), ("val", CHANGES[0])])
def test_annotations_that_changed_at_the_same_paths_are_refused(tmp_path: Path, split: str, change: Callable):
    spec = {name: write_set(tmp_path / name) for name in ("train", "val")}
    overrides = [f"data.{name}={text}" for name, text in spec.items()]
    make_trainer(tmp_path / "run", *STATEFUL, *overrides).save("last")
    last = tmp_path / "run/checkpoints/last.pt"
    make_trainer(tmp_path / "run", *STATEFUL, *overrides).resume(load_checkpoint(last), last)
    write_set(tmp_path / split, change)
    assert f"data.{split}" in refusal(last, *overrides)


def test_moved_data_may_have_new_paths(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def overrides(folder: Path) -> list[str]:
        return [f"data.{split}={write_set(folder / split)}" for split in ("train", "val")]

    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    make_trainer(tmp_path / "run", *STATEFUL, *overrides(tmp_path / "here")).save("last")
    last = tmp_path / "run/checkpoints/last.pt"
    moved = overrides(tmp_path / "there")
    make_trainer(tmp_path / "run", *STATEFUL, *moved).resume(load_checkpoint(last), last)
    keys = [f"data.{split}.{name}" for split in ("train", "val") for name in ("images", "annotations")]
    assert all(key in warnings_of(caplog)[0] for key in keys)
    assert "data.train.images" in refusal(last, *moved, change=without_data)


def test_the_initial_weights_file_may_be_missing(run: Path, caplog: pytest.LogCaptureFixture):
    def set_weights(checkpoint: dict) -> None:
        checkpoint["config"] = checkpoint["config"].replace("weights: null", "weights: gone.pt")

    trainer = resume(run, change=set_weights)
    assert all(fact in warnings_of(caplog)[0] for fact in ("model.weights", "gone.pt"))
    assert_same(dict(trainer.model.state_dict()), dict(load_checkpoint(run)["training"]["model"]))


@pytest.mark.parametrize(
    ("override", "is_kept"),
    [
        *(("evaluation.batch_size=3", True), ("train.lr=0.003", True)),
        *(("evaluation.scales=[1.0, 0.5]", False), ("data.short_side=96", False)),
    ],
)
def test_the_best_ap_is_kept_only_if_it_is_measured_with_equal_settings(run: Path, tmp_path: Path, override, is_kept):
    folder = tmp_path / "run"
    shutil.copytree(run.parent.parent, folder)
    shutil.copy(run, folder / "checkpoints/best.pt")

    def set_best_ap(checkpoint: dict) -> None:
        checkpoint["training"]["best_ap"] = 0.5

    trainer = resume(folder / "checkpoints/last.pt", override, change=set_best_ap)
    assert trainer.best_ap == (0.5 if is_kept else -math.inf)


def test_a_moved_data_set_has_the_same_fingerprint(tmp_path: Path):
    fingerprints = []
    for name in ("here", "there"):
        config = config_from_text(TINY, "TINY", [f"data.train={write_set(tmp_path / name)}"])
        fingerprints.append(fingerprint(build_dataset(config, "train")))
    first, second = fingerprints
    assert first == second and (first["images"], first["objects"]) == (12, 12)


def test_changed_settings_take_effect(run: Path):
    trainer = resume(run, "train.lr=0.5", "train.weight_decay=0.25", "train.momentum=0.5")
    assert [(g["weight_decay"], g["momentum"]) for g in trainer.step.optimizer.param_groups] == [
        (0.25, 0.5),
        (0.0, 0.5),
    ]
    before = load_checkpoint(run)["training"]["optimizer"]["state"]
    buffers = [state["momentum_buffer"] for state in trainer.step.optimizer.state_dict()["state"].values()]
    assert_same(buffers, [state["momentum_buffer"] for state in before.values()])
    trainer.step(next(trainer.batches(1)))
    assert {group["lr"] for group in trainer.step.optimizer.param_groups} == {0.5}


def test_a_run_without_momentum_may_resume_with_momentum(tmp_path: Path):
    trainer = make_trainer(tmp_path, *STATEFUL, "train.momentum=0")
    for batches in trainer.batches(0):
        trainer.step(batches)
    trainer.save("last")
    resumed = resume(tmp_path / "checkpoints/last.pt", "train.momentum=0.9")
    first = [p.detach().clone() for p in resumed.model.parameters()]
    assert not resumed.step(next(resumed.batches(1)))["refused"]
    assert any(not torch.equal(a, b) for a, b in zip(first, resumed.model.parameters(), strict=True))


def test_a_changed_loss_starts_with_a_new_state_and_the_other_keeps_its_state(
    run: Path, caplog: pytest.LogCaptureFixture
):
    saved = load_checkpoint(run)["training"]["criterion"]
    assert any(value.any() for value in saved.values())
    for override in ("loss.classification.bins=20", "loss.classification=focal"):
        caplog.clear()
        new = make_trainer(run.parent.parent, *STATEFUL, override).criterion.state_dict()
        state = resume(run, override).criterion.state_dict()
        assert state.keys() == new.keys()
        for name, value in state.items():
            assert_same(value, saved[name] if name.startswith("boxes.") else new[name], name)
        assert any("loss.classification" in line for line in warnings_of(caplog)[1:])
    unchanged = resume(run, "loss.classification.momentum=0.25").criterion.state_dict()  # with equal bins
    assert_same(dict(unchanged), dict(saved))


def foreign_optimizer(checkpoint: dict) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    checkpoint["training"]["optimizer"] = torch.optim.Adagrad([parameter]).state_dict()


def without_momentum(checkpoint: dict) -> None:
    for group in checkpoint["training"]["optimizer"]["param_groups"]:
        del group["momentum"]


def adam_state(checkpoint: dict) -> None:
    for state in checkpoint["training"]["optimizer"]["state"].values():
        state["exp_avg"] = state.pop("momentum_buffer")


def empty_state(checkpoint: dict) -> None:
    checkpoint["training"]["optimizer"] = {}


@pytest.mark.parametrize("change", [foreign_optimizer, without_momentum, adam_state, empty_state])
def test_the_state_of_another_optimizer_is_refused(run: Path, change: Change):
    refusal(run, change=change)


def test_a_refusal_does_not_change_the_run_folder(run: Path):
    folder = run.parent.parent
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refusal(run, "train.optimizer=adamw")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_run_that_resumes_with_another_loss_completes(run: Path, tmp_path: Path):
    trainer = make_trainer(tmp_path, *STATEFUL, "loss.classification=focal", "train.precision=fp16", "train.lr=0.001")
    trainer.resume(copy.deepcopy(load_checkpoint(run)), run)
    trainer.train()
    assert [int(row["step"]) for row in rows_of(tmp_path)] == list(range(STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH))
