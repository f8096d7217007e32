"""A head `one_to_one`: its predictions, its losses, its detections without non-maximum suppression, and its weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import first_batches
from tiny import tiny_config, tiny_trainer

from detector.build import build_dataset, build_model, build_probe
from detector.core.errors import UserError
from detector.core.structures import Predictions, Priors
from detector.data.images import read_image
from detector.deploy.predict import Detector
from detector.engine.trainer import Trainer
from detector.geometry.coders import DeltaCoder
from detector.models import postprocess
from detector.models.weights.load import load_weights

POINTS = ("model.head={type: points, depth: 1, activation: exp}", "assigner=task_aligned", "loss.box=giou")
OPTIONS = (*POINTS, "loss.classification=quality_focal", "train.batch_size=4", "train.lr=0.01")
ONE_TO_ONE = "model.head.one_to_one=true"


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return tiny_trainer(tmp_path, *OPTIONS, ONE_TO_ONE)


def test_the_predictions_train_only_their_branch_and_the_one_to_many_predictions_train_the_others(trainer: Trainer):
    (batch,) = first_batches(trainer, 1)
    model = trainer.model.train()
    for is_one_to_many in (False, True):
        model.zero_grad()
        predictions = model(batch.images)
        branch = predictions.one_to_many if is_one_to_many else predictions
        (branch.logits.sum() + branch.raw.sum() + branch.box_quality.sum()).backward()
        trained = {name for name, p in model.named_parameters() if p.grad is not None}
        expected = {name for name, _ in model.named_parameters() if ("one_to_one" in name) != is_one_to_many}
        assert trained == expected and len(trained) > 5
    assert predictions.nms_free and not predictions.one_to_many.nms_free
    in_evaluation = model.eval()(batch.images)
    assert in_evaluation.one_to_many is None and torch.equal(in_evaluation.logits, predictions.logits)


def test_the_first_head_does_not_change(tmp_path: Path):
    """The names and the initial values are those of a head without `one_to_one`, and the second head has the same."""
    states = []
    for overrides in (OPTIONS, (*OPTIONS, ONE_TO_ONE)):
        torch.manual_seed(0)
        states.append(build_model(tiny_config(tmp_path, *overrides), 3).state_dict())
    single, double = states
    assert list(single) == [name for name in double if "one_to_one" not in name]
    for name, value in single.items():
        assert torch.equal(value, double[name])
        assert not name.startswith("head.") or torch.equal(value, double[name.replace("head.", "head.one_to_one.")])


def test_the_weights_of_the_two_losses_change_linearly_during_the_run(trainer: Trainer):
    (batch,) = first_batches(trainer, 1)
    step, num_steps = trainer.step, trainer.schedule.num_steps
    names = ["cls", "box", "quality"]
    assert trainer.criterion.term_names == [*names, *(f"one_to_many_{name}" for name in names)]

    def terms_at(steps_done: int) -> dict[str, float]:
        step.steps_done = steps_done
        (result,), _ = step.forward_backward([batch])
        assert set(result.terms.parts) == {"cls_fg", "cls_bg", "one_to_many_cls_fg", "one_to_many_cls_bg"}
        for prefix in ("", "one_to_many_"):
            parts = result.terms.parts[f"{prefix}cls_fg"] + result.terms.parts[f"{prefix}cls_bg"]
            torch.testing.assert_close(parts, result.terms.weighted[f"{prefix}cls"])
        return {name: value.item() for name, value in result.terms.weighted.items()}

    trainer.criterion.one_to_many_weights = 0.5, 0.5
    equal = terms_at(0)
    trainer.criterion.one_to_many_weights = 0.8, 0.1
    for steps_done in (0, num_steps // 2, num_steps - 1):
        weight = 0.8 - 0.7 * steps_done / num_steps
        for name, value in terms_at(steps_done).items():
            factor = weight if name.startswith("one_to_many_") else 1 - weight
            assert value == pytest.approx(2 * factor * equal[name], rel=1e-5) and value > 0


@pytest.mark.slow
def test_a_training_and_its_detections_without_non_maximum_suppression(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (batch,) = first_batches(trainer, 1)
    rows = [trainer.step([batch]) for _ in range(12)]
    num_objects = int((batch.labels >= 0).sum())
    assert all(0 < row["num_fg"] <= num_objects and row["loss"].isfinite() for row in rows)
    assert sum(row["loss"] for row in rows[-3:]) < 0.9 * sum(row["loss"] for row in rows[:3])

    calls = []
    suppress = postprocess.batched_nms
    monkeypatch.setattr(postprocess, "batched_nms", lambda *inputs: calls.append(1) or suppress(*inputs))
    _, detections = trainer.evaluate(trainer.model)
    config = tiny_config(tmp_path, *OPTIONS, ONE_TO_ONE, "evaluation.score_threshold=0")
    dataset = build_dataset(config, "val")
    image = read_image(dataset.records[0].path)
    (detected,) = Detector(trainer.model, config, dataset.class_names, dataset.category_ids, "cpu").predict([image])
    assert len(detections) > 0 and len(detected.scores) == config.evaluation.max_detections and not calls
    config = tiny_config(tmp_path, *OPTIONS, ONE_TO_ONE, "evaluation.flip=true")
    Detector(trainer.model, config, dataset.class_names, dataset.category_ids, "cpu").predict([image])
    assert calls  # each of the two views has a box of the same object

    probe = build_probe(config, dataset, torch.device("cpu"), torch.float32)(trainer.model).compute()
    assert 0 < probe.rows.foreground <= sum(len(record.boxes) for record in dataset.records)


def test_equal_boxes_are_all_detected():
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1)
    logits = torch.tensor([[[1.0], [3.0], [-9.0], [2.0]]])
    predictions = Predictions(logits, torch.zeros(1, 4, 4), Priors(boxes, (4,)), DeltaCoder())
    size = torch.tensor([[16, 16]])
    limits = {"score_threshold": 0.3, "nms_iou": 0.5, "candidates_per_level": 9, "max_detections": 2}
    counts = []
    for nms_free in (False, True):
        (detected,) = postprocess.postprocess(replace(predictions, nms_free=nms_free), size, size, **limits)
        torch.testing.assert_close(detected.scores, torch.tensor([3.0, 2])[: len(detected.scores)].sigmoid())
        counts.append(len(detected.scores))
    assert counts == [1, 2]


@pytest.mark.parametrize(
    ("overrides", "key", "remedy"),
    [
        (("assigner=sim_ota",), "assigner", "task_aligned"),
        (("assigner=atss",), "assigner", "task_aligned"),
        (("train.accumulation=2",), "train.accumulation", "model.head.one_to_one"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: tuple[str, ...], key: str, remedy: str, tmp_path: Path):
    with pytest.raises(UserError) as error:
        tiny_trainer(tmp_path, *OPTIONS, ONE_TO_ONE, "train.batch_size=2", *overrides)
    assert str(error.value).startswith(f"{key}: ") and remedy in error.value.remedy and "\n" not in str(error.value)


@pytest.mark.parametrize("overrides", [OPTIONS, (*OPTIONS, ONE_TO_ONE)], ids=["one head", "two heads"])
def test_a_checkpoint_with_one_or_two_heads_starts_both_heads(overrides: tuple[str, ...], tmp_path: Path):
    """A checkpoint with one head starts both heads. The classes of the new model have another order."""
    trainer = tiny_trainer(tmp_path, *overrides)
    for parameter in trainer.model.parameters():
        parameter.data.normal_(std=0.1)
    trainer.save("last")
    saved, names = trainer.model.state_dict(), trainer.description["class_names"]
    model = build_model(tiny_config(tmp_path, *OPTIONS, ONE_TO_ONE), len(names))
    load_weights(model, str(tmp_path / "checkpoints/last.pt"), names[::-1])
    for name, value in model.state_dict().items():
        old = name if name in saved else name.replace("one_to_one.", "")
        rows = list(range(len(value)))
        assert torch.equal(value, saved[old][rows[::-1] if "class_branch.output" in name else rows]), name
