"""An assigner that needs predictions, in the training step and in the instruments. It is the example of the guide."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from guides import write_examples
from runs import first_batches
from tiny import tiny_config, tiny_trainer
from torch import Tensor

from detector.build import build_census, build_dataset, build_probe
from detector.core.errors import UserError
from detector.core.structures import IGNORED, Batch, GroundTruth, Predictions, Priors, is_foreground
from detector.data.pipeline.batches import collate
from detector.engine.trainer import Trainer
from detector.geometry.assignment import ASSIGNERS
from detector.geometry.coders import DeltaCoder

ASSIGNER = ("imports=[my_assigner]", "assigner=best_fits", "model.head.prior=0.1")


@pytest.fixture(scope="module", autouse=True)
def example(tmp_path_factory: pytest.TempPathFactory, registered_parts: None):
    folder = tmp_path_factory.mktemp("examples")
    write_examples(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        importlib.import_module("my_assigner")
        yield
    del sys.modules["my_assigner"]


def gradients_of(trainer: Trainer, step: list[Batch]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return the measurements of a step, and the gradients that its optimizer receives."""
    gradients: list[Tensor] = []
    trainer.step.optimizer.register_step_pre_hook(
        lambda *_: gradients.extend(p.grad.clone() for p in trainer.model.parameters() if p.grad is not None)
    )
    return trainer.step(step), gradients


def test_the_targets_of_a_hand_made_image():
    """Two of four priors fit the first object. The second object is ignored. The third row is padding."""
    priors = Priors(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [20, 20, 30, 30], [0, 0, 2, 2]]), (4,))
    truth = GroundTruth(
        torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 0, 0]]]),
        torch.tensor([[1, 0, IGNORED]]),
        torch.tensor([[False, True, False]]),
    )
    logits = torch.zeros(1, 4, 2)
    predictions = Predictions(logits, torch.zeros(1, 4, 4), priors, DeltaCoder())
    targets = ASSIGNERS.build("best_fits", 2, candidates=2)(priors, truth, predictions)
    assert targets.labels.tolist() == [[1, 1, 2, 2]] and targets.matched[0, :2].tolist() == [0, 0]
    torch.testing.assert_close(targets.quality[0, :2], torch.tensor([1.0, 0.8]))


@pytest.mark.parametrize(
    "overrides",
    [
        ("loss.classification=focal", "loss.box=giou"),
        (
            "loss.classification=quality_focal",
            "loss.box=[{type: giou, weight: 2.0}, smooth_l1]",
            "loss.box_rows=quality",
        ),
        ("loss.classification=focal", "loss.normaliser=ema", "anchor_sampler=hard_negatives"),
        ("loss.classification=focal", "loss.normaliser=image"),
        ("loss.classification=quality_focal", "assigner=task_aligned"),
        ("loss.classification=focal", "assigner=sim_ota"),
        ("loss.classification=varifocal", "assigner=soft_label"),
    ],
    ids=", ".join,
)
def test_two_accumulated_batches_have_the_gradient_of_one_large_batch(overrides: tuple[str, ...], tmp_path: Path):
    parts = tiny_trainer(tmp_path, *ASSIGNER, "train.accumulation=2", *overrides)
    large = tiny_trainer(tmp_path, *ASSIGNER, "train.batch_size=4", *overrides)
    (batch,) = first_batches(large, 1)
    measured, gradients = gradients_of(parts, batch.split(2))
    expected, expected_gradients = gradients_of(large, [batch])
    assert measured["num_fg"] > 1 and len(gradients) == len(expected_gradients)
    for name in ("loss", "cls", "num_fg", "grad_norm", "fg_gradient_share", "mean_p_fg"):
        torch.testing.assert_close(measured[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-5)


def test_the_probe_counts_the_foreground_of_the_predictions(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, *ASSIGNER)
    config = tiny_config(tmp_path, *ASSIGNER)
    dataset = build_dataset(config, "val")
    probe = build_probe(config, dataset, torch.device("cpu"), torch.float32)(trainer.model).compute()
    model, num_fg = trainer.model.eval(), 0
    for sample in dataset:
        batch = collate([sample], model.size_divisor)
        labels = trainer.step.assign(batch, model(batch.images)).labels
        num_fg += int(is_foreground(labels, model.num_classes).sum())
    assert probe.rows.foreground == num_fg > 0


def test_losses_that_cannot_be_divided_after_the_step_are_refused(tmp_path: Path):
    for override in ("train.accumulation=2", "faults.out_of_memory=halve"):
        with pytest.raises(UserError, match="best_fits"):
            tiny_trainer(tmp_path, *ASSIGNER, "loss.classification=ghm_c", override)
    tiny_trainer(tmp_path, *ASSIGNER, "loss.classification=ghm_c")


def test_a_census_refuses_an_assigner_that_needs_predictions(tmp_path: Path):
    config = tiny_config(tmp_path, *ASSIGNER)
    with pytest.raises(UserError, match="assigner"):
        build_census(config, build_dataset(config, "train"))
