"""`loss.warmup`: another classification loss in the first steps."""

from pathlib import Path

import pytest
import torch
from criteria import make_targets
from runs import first_batches, make_trainer

from detector.config import load_config
from detector.core.errors import UserError
from detector.core.structures import Predictions, Priors
from detector.geometry.coders import DeltaCoder
from detector.losses import ANCHOR_SAMPLERS, BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.losses.criterion import Criterion
from detector.losses.settings import LossSettings

WARMUP = "loss.warmup=focal", "loss.warmup_steps=2"


def class_loss(criterion: Criterion, step: int) -> float:
    """Return the classification loss of a step for a score of 0.5 on two anchors, the first of them foreground."""
    anchors, logits = torch.tensor([[0.0, 0, 9, 9], [9, 9, 18, 18]]), torch.zeros(1, 2, 1, requires_grad=True)
    predictions = Predictions(logits, torch.zeros(1, 2, 4), Priors(anchors, (2,)), DeltaCoder())
    criterion.begin_step(step)
    terms = criterion(predictions, make_targets(torch.tensor([[0, 1]]), anchors[None]), 1)
    return terms.weighted["cls"].item()


def test_the_first_steps_have_the_other_loss_and_do_not_change_the_state_of_the_main_loss():
    settings = LossSettings.model_validate({"warmup": "focal", "warmup_steps": 2})
    ghm, focal = CLASSIFICATION_LOSSES.build("ghm_c"), CLASSIFICATION_LOSSES.build("focal")
    sampler = ANCHOR_SAMPLERS.build("all", 1)
    criterion = Criterion(settings, ghm, [BOX_LOSSES.build("l1")], sampler, 1, warmup=focal)
    log_2 = torch.log(torch.tensor(2.0)).item()
    # (1 - 0.5)^2 times 0.25 for the foreground, and times 0.75 for the background
    assert class_loss(criterion, 0) == class_loss(criterion, 1) == pytest.approx(0.25 * log_2)
    assert not ghm.density.running_counts.any()
    assert class_loss(criterion, 2) == pytest.approx(log_2)  # both elements are in a single bin
    assert ghm.density.running_counts.sum() == pytest.approx(0.25 * 2)


def test_a_training_begins_as_a_training_with_the_other_loss(tmp_path: Path):
    focal = make_trainer(tmp_path / "focal", "loss.classification=focal")
    ghm = make_trainer(tmp_path / "ghm", "loss.classification=ghm_c", *WARMUP, "faults.spike_factor=1000")
    batches = first_batches(focal, 3)
    pairs = [(focal.step([batch])["cls"].item(), ghm.step([batch])["cls"].item()) for batch in batches]
    assert [first == second for first, second in pairs] == [True, True, False]
    assert ghm.criterion.classification.density.steps.max() == 1
    assert int(ghm.step.guard.steps) == 1  # the mean of the other loss is forgotten


def test_a_warmup_that_selects_its_anchors_needs_all_anchors():
    overrides = ["loss.warmup=ohem", "anchor_sampler=random"]
    with pytest.raises(UserError, match="ohem"):
        load_config("retina_focal.yaml", overrides)


def test_an_error_names_the_key_of_the_warmup(tmp_path: Path):
    with pytest.raises(UserError, match=r"loss\.warmup\.alpha"):
        make_trainer(tmp_path, "loss.warmup={type: cross_entropy, alpha: [0.5]}")
