import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from guides import write_examples
from runs import (
    STEPS_PER_EPOCH,
    WITH_STATE,
    assert_same,
    first_batches,
    make_trainer,
    rows_of,
    scalars,
    seed_global_generators,
)
from torch import nn
from torchvision.ops import box_iou

from detector.core.errors import UserError
from detector.data.images import write_image
from detector.engine.checkpoint import load_checkpoint
from detector.engine.curves import save_curves
from detector.engine.outcome import load_evaluation
from detector.engine.trainer import Trainer
from detector.evaluation.metrics import Metrics
from detector.losses.base import BoxLoss


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    folder = tmp_path_factory.mktemp("finished")
    trainer = make_trainer(folder, *WITH_STATE)
    seed_global_generators(1)
    trainer.train()
    return folder, trainer


def test_the_columns_of_metrics_csv(finished: tuple[Path, Trainer]):
    rows = rows_of(finished[0])
    columns = {
        *("step", "lr", "loss", "cls", "box", "cls_fg", "cls_bg"),
        *("fg_gradient_share", "grad_norm", "num_fg", "refused", "images_per_s"),
    }
    meters = [name for name in finished[1].step.meter_names if "/" not in name]
    assert set(rows[0]) == columns | set(meters)
    every = finished[1].settings.meter_every
    for row in rows:
        measured = [name for name in meters if row[name]]
        assert measured == (meters if int(row["step"]) % every == 0 else [])
    for row in ({k: float(v) for k, v in row.items() if k in columns} for row in rows):
        assert all(math.isfinite(v) for v in row.values())
        assert row["cls"] == pytest.approx(row["cls_fg"] + row["cls_bg"], rel=1e-6)
        assert row["loss"] == pytest.approx(row["cls"] + row["box"], rel=1e-6)
        assert row["cls_fg"] > 0 and row["cls_bg"] > 0 and row["images_per_s"] > 0 and row["grad_norm"] > 0
        assert row["lr"] == finished[1].schedule.rate(int(row["step"]))


def test_parts_csv_has_each_level_and_class_of_each_reading(finished: tuple[Path, Trainer]):
    rows, trainer = rows_of(finished[0], "parts.csv"), finished[1]
    names = ["P3", "P4", *(f"class {name}" for name in trainer.description["class_names"])]
    steps = range(0, trainer.steps_done, trainer.settings.meter_every)
    assert [(int(row["step"]), row["part"]) for row in rows] == [(step, name) for step in steps for name in names]
    for step in steps:
        of_step = [row for row in rows if int(row["step"]) == step]
        levels, classes = of_step[:2], of_step[2:]
        assert sum(float(row["num_fg"]) for row in levels) == sum(float(row["num_fg"]) for row in classes) > 0
        for part in (levels, classes):
            shares = [float(row[f"gradient_share_{side}"]) for row in part for side in ("fg", "bg")]
            assert sum(shares) == pytest.approx(1, abs=1e-5) and min(shares) >= 0


def test_a_collapsed_detector_gets_one_warning_and_none_at_the_start(tmp_path: Path, caplog):
    overrides = ("train.epochs=35", "train.lr=1e-9", "train.evaluate_every=0", "train.meter_every=2")
    trainer = make_trainer(tmp_path, *overrides)
    trainer.step.steps_done, trainer.epochs_done = 96, 96 // STEPS_PER_EPOCH
    trainer.train()
    (line,) = [record.getMessage() for record in caplog.records if "model.head.prior" in record.getMessage()]
    assert "step 100" in line
    steps = [int(row["step"]) for row in rows_of(tmp_path) if row["mean_p_fg"]]
    assert steps == [96, 98, 100, 102, 104], "there must be readings before and after step 100"


def test_curves_are_drawn_from_metrics_csv(finished: tuple[Path, Trainer]):
    save_curves(finished[0])
    assert (finished[0] / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_has_the_values_of_the_csv_files(finished: tuple[Path, Trainer]):
    folder = finished[0]
    rows = rows_of(folder)
    for name in ("loss", "cls_fg", "fg_gradient_share", "num_fg", "lr"):
        expected = [(int(row["step"]), pytest.approx(float(row[name]), rel=1e-6)) for row in rows]
        assert scalars(folder, f"train/{name}") == expected
    measured = [row for row in rows if row["mean_p_fg"]]
    for name in ("mean_p_fg", "effective_negatives", "gradient_norm_00"):
        expected = [(int(row["step"]), pytest.approx(float(row[name]), rel=1e-6)) for row in measured]
        assert scalars(folder, f"train/{name}") == expected
    for row in rows_of(folder, "parts.csv"):
        for kind in ("num_fg", "num_bg", "loss_share_bg", "gradient_share_fg"):
            value = dict(scalars(folder, f"train/{row['part']}/{kind}"))[int(row["step"])]
            assert value == pytest.approx(float(row[kind]), rel=1e-6)
    metrics, _ = load_evaluation(folder)
    evaluations = scalars(folder, "val/AP")
    assert [step for step, _ in evaluations] == [3, 6]
    assert evaluations[-1][1] == pytest.approx(metrics["AP"], rel=1e-6)


def labels_by_hand(anchors: torch.Tensor, batch, image: int, num_classes: int) -> torch.Tensor:
    """Return the labels of an image, computed anchor by anchor."""
    real = (batch.labels[image] >= 0) & ~batch.ignore[image]
    boxes, classes = batch.boxes[image][real], batch.labels[image][real]
    labels = torch.full((len(anchors),), num_classes)
    if len(boxes) == 0:
        return labels
    iou = box_iou(boxes, anchors)
    best_of_box = iou.amax(dim=1)
    for a in range(len(anchors)):
        best, owner = iou[:, a].max(dim=0)
        is_best_of_a_box = bool(((iou[:, a] == best_of_box) & (best_of_box > 0)).any())
        if best >= 0.5 or is_best_of_a_box:
            labels[a] = classes[owner]
        elif best >= 0.4:
            labels[a] = -1
    return labels


def test_num_fg_and_the_foreground_gradient_share_by_hand(tmp_path: Path):
    """Cross entropy: |d loss / d logit| = |p - target| / num_fg, here in float64 and without autograd."""
    trainer = make_trainer(tmp_path, "loss.classification={type: cross_entropy}", "model.head.prior=0.2")
    batches = first_batches(trainer, 2)
    num_fg, sums = 0, []
    for batch in batches:
        with torch.no_grad():
            predictions = trainer.model(batch.images)
        logits = predictions.logits.double().numpy()
        num_classes = logits.shape[-1]
        labels = [labels_by_hand(predictions.priors.boxes, batch, i, num_classes) for i in range(len(logits))]
        labels = torch.stack(labels).numpy()
        targets = labels[..., None] == np.arange(num_classes)
        gradient = np.abs(1 / (1 + np.exp(-logits)) - targets) * (labels >= 0)[..., None]
        num_fg += targets.sum()
        sums.append((gradient[targets].sum(), gradient.sum()))
    assert num_fg > 4 and (labels == -1).any()
    measured = trainer.step(batches)
    assert float(measured["num_fg"]) == num_fg
    foreground, total = np.sum(sums, axis=0)
    assert float(measured["fg_gradient_share"]) == pytest.approx(foreground / total, rel=1e-4)
    assert 0.01 < foreground / total < 0.9


@pytest.mark.parametrize("normaliser", ["global", "image"])
def test_accumulated_batches_equal_one_large_batch(normaliser: str, tmp_path: Path):
    parts = make_trainer(tmp_path / "a", f"loss.normaliser={normaliser}")
    whole = make_trainer(tmp_path / "b", f"loss.normaliser={normaliser}", "train.accumulation=1", "train.batch_size=4")
    start = {k: v.clone() for k, v in parts.model.state_dict().items()}
    for step in range(2):
        small, large = first_batches(parts, 4)[2 * step :][:2], first_batches(whole, 2)[step]
        assert torch.equal(torch.cat([batch.images for batch in small]), large.images)
        measured, expected = parts.step(small), whole.step([large])
        assert measured.keys() == expected.keys() and (parts.step.meter_names[0] in measured) == (step == 0)
        for name in measured:
            torch.testing.assert_close(measured[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)
    end = whole.model.state_dict()
    change = max(float((end[k] - v).abs().max()) for k, v in start.items())
    difference = max(float((end[k] - v).abs().max()) for k, v in parts.model.state_dict().items())
    assert change > 1e-3 and difference < 1e-3 * change  # the order of the fp32 sums differs


def test_the_average_of_weights_and_buffers_by_hand(tmp_path: Path):
    """The first update copies the weights. After n updates, the decay is min(0.3, (1 + n) / (10 + n))."""
    trainer = make_trainer(tmp_path, "train.ema_decay=0.3", "model.backbone.norm=batch", "train.accumulation=1")
    expected: dict[str, torch.Tensor] = {}
    for n, batch in enumerate(first_batches(trainer, 5)):
        trainer.step([batch])
        decay = (0, 2 / 11, 3 / 12, 0.3, 0.3)[n]
        for name, value in trainer.model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected.get(name, 0) + (1 - decay) * value.double()
            else:
                expected[name] = value.clone()
    average = trainer.evaluated_model.state_dict()
    assert average.keys() == expected.keys()
    assert sum(name.endswith("running_var") for name in average) > 5
    for name, value in expected.items():
        torch.testing.assert_close(average[name].to(value.dtype), value, rtol=1e-5, atol=1e-6)
    weights = trainer.model.state_dict()
    assert (average["backbone.bn1.running_mean"] - weights["backbone.bn1.running_mean"]).abs().max() > 1e-5


class NaNLoss(BoxLoss):
    def elementwise(self, predicted, target):
        return (predicted - target) * math.nan


class InfiniteSlope(BoxLoss):
    """A loss of 0 with the gradient 0 * inf = NaN."""

    def elementwise(self, predicted, target):
        return (predicted - predicted.detach()).abs().sqrt()


@pytest.mark.parametrize(
    ("cause", "precision", "optimizer"),
    [  # every cause with every precision that refuses it, and every cause and precision with every optimizer
        ("weight", "fp32", "sgd"),
        ("weight", "fp16", "adamw"),
        ("loss", "fp32", "adamw"),
        ("loss", "fp16", "sgd"),
        ("gradient", "fp32", "sgd"),
        ("gradient", "fp32", "adamw"),
    ],
)
def test_a_step_whose_loss_or_gradient_is_not_finite_changes_nothing(
    cause: str, precision: str, optimizer: str, tmp_path: Path
):
    """The bad steps are the first step, before the optimizer has a state, and a later step."""
    trainer = make_trainer(
        tmp_path,
        *(f"train.precision={precision}", f"train.optimizer={optimizer}", "model.backbone.norm=batch"),
        *("loss.classification=ghm_c", "loss.normaliser=ema", "train.ema_decay=0.9"),
    )
    batches, good = first_batches(trainer, 6), trainer.criterion.boxes[0]
    for bad in (0, 2):
        if cause == "weight":
            with torch.no_grad():
                trainer.model.head.box_branch.output.bias[0] = math.inf
        else:
            trainer.criterion.boxes[0] = NaNLoss() if cause == "loss" else InfiniteSlope()
        before, average = copy.deepcopy((trainer.state(), trainer.step.ema.module.state_dict()))
        assert bool(trainer.step(batches[bad : bad + 2])["refused"])
        after = trainer.state()
        assert after["average_updates"] == before["average_updates"] == bad // 2
        if cause != "weight":  # the average of an infinite weight is NaN
            assert_same(dict(trainer.step.ema.module.state_dict()), dict(average), "average")
        if optimizer == "adamw" and bad == 0:  # AdamW creates its state in the first step
            assert not any(
                value.any() for state in after.pop("optimizer")["state"].values() for value in state.values()
            )
        for part in after.keys() & {"model", "optimizer", "criterion"}:
            assert_same(dict(after[part]), dict(before[part]), part)
        if cause == "weight":
            with torch.no_grad():
                trainer.model.head.box_branch.output.bias[0] = 0
        trainer.criterion.boxes[0] = good
        trainer.step.scaler.update(64.0)
        assert not bool(trainer.step(batches[bad + 2 : bad + 4])["refused"])
        weights = trainer.model.state_dict()
        assert all(torch.isfinite(value).all() for value in weights.values())
        for name in ("neck.lateral.0.weight", "backbone.bn1.running_mean"):
            assert not torch.equal(weights[name], before["model"][name]), name


def test_fp16_skips_a_step_with_infinite_gradients_and_lowers_its_scale(tmp_path: Path):
    trainer = make_trainer(tmp_path, "train.precision=fp16")
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    scale = trainer.step.scaler.get_scale()
    box, trainer.criterion.boxes[0] = trainer.criterion.boxes[0], InfiniteSlope()
    batches = first_batches(trainer, 4)
    assert not bool(trainer.step(batches[:2])["refused"])  # the step is skipped, but not refused
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())
    assert trainer.step.scaler.get_scale() == scale / 2
    trainer.criterion.boxes[0] = box
    trainer.step.scaler.update(1024.0)
    trainer.step(batches[2:])
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())


def validations(aps: list[float]) -> Callable[[nn.Module], tuple[Metrics, list[dict]]]:
    values = iter(aps)
    return lambda model: (Metrics(numbers={"AP": (ap := next(values)), "AP50": ap}), [])


def test_best_is_the_best_model_and_last_is_the_last_model(tmp_path: Path):
    trainer = make_trainer(tmp_path, "train.epochs=3")
    evaluated = []
    validate = validations([0.2, 0.5, 0.3])

    def evaluate(model: nn.Module) -> tuple[Metrics, list[dict]]:
        evaluated.append({name: value.clone() for name, value in model.state_dict().items()})
        return validate(model)

    trainer.evaluate = evaluate
    trainer.train()
    best, last = (load_checkpoint(tmp_path / f"checkpoints/{name}.pt") for name in ("best", "last"))
    assert_same(dict(best["model"]), evaluated[1])
    assert_same(dict(last["model"]), evaluated[2])
    assert not torch.equal(best["model"]["neck.lateral.0.weight"], last["model"]["neck.lateral.0.weight"])
    assert trainer.best_ap == last["training"]["best_ap"] == 0.5
    assert json.loads((tmp_path / "metrics.json").read_text())["AP"] == 0.3
    assert "training" not in best
    with pytest.raises(UserError, match=r"best\.pt.*checkpoints/last\.pt"):
        make_trainer(tmp_path).resume(best, tmp_path / "checkpoints/best.pt")


def test_without_objects_the_first_model_is_saved_as_best(tmp_path: Path):
    trainer = make_trainer(tmp_path, "train.accumulation=6")
    trainer.evaluate = validations([math.nan, math.nan])
    trainer.train()
    best, last = (load_checkpoint(tmp_path / f"checkpoints/{name}.pt") for name in ("best", "last"))
    assert not torch.equal(best["model"]["neck.lateral.0.weight"], last["model"]["neck.lateral.0.weight"])
    assert json.loads((tmp_path / "metrics.json").read_text())["AP"] is None


def test_evaluate_every_is_in_epochs_and_the_last_epoch_is_always_evaluated(tmp_path: Path):
    for every, expected in ((2, [2, 4, 5]), (0, [5])):
        trainer = make_trainer(tmp_path / str(every), "train.epochs=5", f"train.evaluate_every={every}")
        assert [e + 1 for e in range(5) if trainer.schedule.evaluates_after(e)] == expected


def test_a_warm_up_longer_than_the_run_is_shortened(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    trainer = make_trainer(tmp_path, "train.warmup_steps=500", "train.epochs=10")
    assert trainer.schedule.num_steps == 30
    rates = [trainer.schedule.rate(step) for step in range(30)]
    assert rates[3:] == [0.01] * 27 and 0 < rates[0] < rates[1] < rates[2] < 0.01
    (line,) = [record.message for record in caplog.records if "train.warmup_steps" in record.message]
    assert "500" in line and "30" in line
    caplog.clear()
    make_trainer(tmp_path, "train.warmup_steps=3", "train.epochs=10")
    assert "warmup" not in caplog.text


def test_more_accumulation_than_an_epoch_has_batches_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"^train\.accumulation: .*\b7\b.*\b6\b"):
        make_trainer(tmp_path, "train.accumulation=7")


def test_two_loaders_of_a_config_give_the_same_batches(tmp_path: Path):
    """The tests above require this."""
    first, second = (first_batches(make_trainer(tmp_path), 3) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images) and a.image_ids == b.image_ids


def write_blocks(folder: Path) -> None:
    """Write eight images of gray noise, each with a red and a blue block."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(8):
        image = rng.integers(90, 130, (64, 64, 3), dtype=np.uint8)
        for half in range(2):
            category = 1 + (half + i) % 2
            w, h = rng.integers(14, 28, 2).tolist()
            x, y = 32 * half + int(rng.integers(32 - w)), int(rng.integers(64 - h))
            image[y : y + h, x : x + w] = (230, 40, 40) if category == 1 else (40, 40, 230)
            annotations.append({"id": len(annotations), "image_id": i, "category_id": category, "bbox": [x, y, w, h]})
        write_image(folder / f"{i}.png", image)
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    contents = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(contents))


@pytest.mark.slow
def test_a_training_overfits_a_few_images(tmp_path: Path):
    """The AP50 on the training images is high only if data, model, losses, optimizer and evaluation fit together."""
    write_blocks(tmp_path)
    blocks = f"{{type: coco, images: {tmp_path}, annotations: {tmp_path / 'annotations.json'}}}"
    trainer = make_trainer(
        tmp_path / "run",
        *(f"data.train={blocks}", f"data.val={blocks}", "data.transforms=[flip]"),
        *("model.head.norm=group", "train.accumulation=1", "train.epochs=15", "train.evaluate_every=0"),
        *("train.optimizer=adamw", "train.lr=0.002", "train.warmup_steps=10", "train.clip_norm=10"),
        "train.schedule=cosine",
    )
    trainer.train()
    metrics, _ = load_evaluation(tmp_path / "run")
    assert metrics["AP50"] > 0.8
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 60 and float(rows[-1]["loss"]) < 0.4 * float(rows[0]["loss"])


@pytest.mark.slow
def test_the_compiled_model_takes_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The backbone is the small example of the guide, because each kernel of a graph takes a second to compile."""
    write_examples(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    small = ("imports=[my_backbone]", "model.backbone={type: plain, width: 16}", "train.accumulation=1")
    small += ("model.levels=[3, 3]", "model.head.sizes=[[12, 26]]", "model.head.depth=0")
    eager, compiled = (make_trainer(tmp_path / name, f"train.compile={name}", *small) for name in ("false", "true"))
    for batch in first_batches(eager, 3):
        expected, measured = eager.step([batch]), compiled.step([batch])
        for name in ("loss", "cls", "box", "grad_norm"):
            torch.testing.assert_close(measured[name], expected[name], rtol=1e-4, atol=1e-6)
    compiled.save("last")
    saved = load_checkpoint(tmp_path / "true/checkpoints/last.pt")["model"]
    assert saved.keys() == eager.model.state_dict().keys()


def test_compiling_needs_a_single_image_size(tmp_path: Path):
    with pytest.raises(UserError, match=r"^train\.compile: .*data\.short_side"):
        make_trainer(tmp_path, "train.compile=true", "data.short_side=[48, 64]")
