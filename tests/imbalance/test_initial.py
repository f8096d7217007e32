"""The expected initial classification loss, and the log line that compares it with the loss of the first step."""

import copy
import logging
import math
from pathlib import Path

import pytest
import torch
from criteria import criterion_of_losses, make_targets
from tiny import names_of_the_library, tiny_trainer
from torch import Tensor
from torchvision.ops import box_iou

from detector.core.structures import IGNORED, Predictions, Priors, Targets
from detector.engine.trainer import Trainer
from detector.geometry.coders import DeltaCoder
from detector.imbalance.initial import expected_initial_loss, judge_first_loss
from detector.losses import BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.losses.base import ElementwiseLoss
from detector.losses.criterion import Criterion

DELTAS = DeltaCoder()

K, A = 4, 300
LEVEL_SIZES = (250, 50)
LOSSES = names_of_the_library(CLASSIFICATION_LOSSES)
ALPHAS, WEIGHTS = [0.1, 0.4, 0.5, 0.9], [2.0, 1.0, 0.5, 4.0]


def build_loss(name: str, **parameters):
    return CLASSIFICATION_LOSSES.build(name, **({"num_classes": K} if name == "equalized_focal" else {}), **parameters)


def make_criterion(classification, normaliser: str = "global", sampler: str = "all") -> Criterion:
    return criterion_of_losses(classification, BOX_LOSSES.build("giou"), K, normaliser=normaliser, sampler=sampler)


def draw_step() -> tuple[Targets, Tensor]:
    """Return three images with 12, 0 and 30 foreground anchors of 300. In each image 20 anchors are ignored."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.full((3, A), K)
    for image, n in enumerate((12, 0, 30)):
        labels[image, torch.randperm(A - 20, generator=generator)[:n]] = torch.randint(K, (n,), generator=generator)
    labels[:, -20:] = IGNORED
    corners = torch.rand(A, 2, generator=generator) * 100
    anchors = torch.cat((corners, corners + 10 + torch.rand(A, 2, generator=generator) * 40), dim=1)
    return make_targets(labels, anchors + torch.rand(3, A, 4, generator=generator) * 10 - 5), anchors


def expected(criterion: Criterion, prior: float, num_batches: int = 1) -> float:
    targets, anchors = draw_step()
    num_fg = criterion.normalise(criterion.count_foreground([targets]))
    return expected_initial_loss(
        criterion, targets, Priors(anchors, LEVEL_SIZES), DELTAS, num_fg, prior, num_batches
    ).item()


def closed_form(labels: Tensor, alpha: float, gamma: float, prior: float) -> float:
    num_fg = int(((labels >= 0) & (labels < K)).sum())
    elements = int((labels >= 0).sum()) * K
    foreground = num_fg * alpha * (1 - prior) ** gamma * -math.log(prior)
    background = (elements - num_fg) * (1 - alpha) * prior**gamma * -math.log(1 - prior)
    return (foreground + background) / max(num_fg, 1)


@pytest.mark.parametrize("prior", [0.001, 0.01, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("normaliser", ["global", "local", "image", "ema"])
@pytest.mark.parametrize(
    ("name", "alpha", "gamma"), [("focal", 0.25, 2.0), ("focal", 0.6, 0.5), ("cross_entropy", 0.3, 0)]
)
def test_focal_and_cross_entropy_in_closed_form(name: str, alpha: float, gamma: float, normaliser: str, prior: float):
    loss = build_loss(name, alpha=alpha, **({"gamma": gamma} if name == "focal" else {}))
    labels = draw_step()[0].labels
    wanted = closed_form(labels, alpha, gamma, prior)
    if normaliser == "image":
        wanted = sum(closed_form(image, alpha, gamma, prior) for image in labels) / 3
    assert expected(make_criterion(loss, normaliser), prior) == pytest.approx(wanted, rel=1e-5)


def test_the_published_prior_makes_the_first_loss_of_cross_entropy_small():
    """With a prior of 0.5, background dominates the first steps (Lin et al. 2017, section 3.3)."""
    even, published = (expected(make_criterion(build_loss("cross_entropy")), prior) for prior in (0.5, 0.01))
    assert even > 6 * published


@pytest.mark.parametrize("prior", [0.01, 0.6])
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        *((name, {}) for name in LOSSES),
        ("cross_entropy", {"alpha": ALPHAS, "class_weights": WEIGHTS}),
        ("focal", {"alpha": None, "class_weights": "inverse_frequency", "class_counts": [9, 1, 3, 40]}),
        ("focal", {"rescale": True}),
        ("ghm_c", {"scope": "level"}),
        ("ohem", {"mode": "top_k", "top_k": 50}),
    ],
    ids=str,
)
def test_the_expected_loss_is_the_loss_of_equal_logits(name: str, parameters: dict, prior: float):
    """The reference calls the loss directly, with torchvision's IoU of anchors and matched boxes."""
    targets, anchors = draw_step()
    logits = torch.full((3, A, K), math.log(prior / (1 - prior)))
    quality = torch.stack([box_iou(anchors, boxes).diag() for boxes in targets.boxes])
    direct = build_loss(name, **parameters)(logits, targets.labels, 42, level_sizes=LEVEL_SIZES, quality=quality)
    assert direct > 0
    assert expected(make_criterion(build_loss(name, **parameters)), prior) == pytest.approx(direct.item(), rel=1e-4)


def test_the_losses_of_the_library_are_covered():
    assert {"focal", "ghm_c", "equalized_focal", "rank_sort", "ohem", "varifocal"} <= set(LOSSES)


@pytest.mark.parametrize("normaliser", ["global", "image"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_batches_of_a_step_add_up_to_the_step(name: str, normaliser: str):
    """A step of two equal batches has the same expected loss as a step of one batch."""
    targets, anchors = draw_step()
    single, double = (make_criterion(build_loss(name), normaliser) for _ in range(2))
    step_loss = expected(single, 0.01)
    batch_loss = expected_initial_loss(
        double, targets, Priors(anchors, LEVEL_SIZES), DELTAS, double.count_foreground([targets] * 2), 0.01, 2
    )
    assert 2 * batch_loss.item() == pytest.approx(step_loss, rel=1e-5)


@pytest.mark.parametrize("sampler", ["random", "hard_negatives"])
def test_only_the_sampled_anchors_are_in_the_expected_loss(sampler: str):
    """Of 42 foreground anchors: 256 random anchors of each image, or 3 background anchors per foreground anchor."""
    targets, anchors = draw_step()
    criterion = make_criterion(build_loss("cross_entropy"), sampler=sampler)
    targets = criterion.sample(targets)
    num_fg = criterion.count_foreground([targets])
    loss = expected_initial_loss(criterion, targets, Priors(anchors, LEVEL_SIZES), DELTAS, num_fg, 0.1, 1).item()
    rows = 3 * 256 if sampler == "random" else 42 * 4
    wanted = (42 * -math.log(0.1) + (rows * K - 42) * -math.log(0.9)) / 42
    assert loss == pytest.approx(wanted, rel=1e-5)


class Averaging(ElementwiseLoss):
    """Cross entropy with an error: it takes a mean over all elements before the division by num_fg."""

    def elementwise(self, logits, targets):
        return torch.nn.functional.softplus(logits.where(~targets, -logits))

    def split(self, logits, labels, num_fg, level_sizes=None, quality=None):
        return super().split(logits, labels, num_fg) / labels.numel()


def test_a_loss_with_a_mean_in_place_of_a_sum_differs_from_the_expected_loss():
    targets, anchors = draw_step()
    criterion = make_criterion(Averaging())
    logits = torch.full((3, A, K), math.log(0.01 / 0.99))
    num_fg = criterion.count_foreground([targets])
    predictions = Predictions(logits, torch.zeros(3, A, 4), Priors(anchors, LEVEL_SIZES), DELTAS)
    observed = criterion(predictions, targets, num_fg).weighted["cls"].item()
    assert expected(criterion, 0.01) > 10 * observed


@pytest.mark.parametrize("normaliser", ["ema", "image"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["ghm_c", "equalized_focal", "focal"])
def test_the_state_of_the_criterion_does_not_change(name: str, training: bool, normaliser: str):
    criterion = make_criterion(build_loss(name), normaliser)
    targets, anchors = draw_step()
    logits = torch.randn(3, A, K, generator=torch.Generator().manual_seed(1))
    num_fg = criterion.normalise(criterion.count_foreground([targets]))
    criterion(
        Predictions(logits, torch.zeros(3, A, 4), Priors(anchors, LEVEL_SIZES), DELTAS), targets, num_fg
    )  # the losses with running counts now have counts
    criterion.train(training)
    before = copy.deepcopy(criterion.state_dict())
    expected_initial_loss(criterion, targets, Priors(anchors, LEVEL_SIZES), DELTAS, num_fg, 0.01, 1)
    after = criterion.state_dict()
    assert after.keys() == before.keys() and (before or (name, normaliser) == ("focal", "image"))
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(module.training == training for module in criterion.modules())


@pytest.mark.parametrize(("observed", "differs"), [(1.09, False), (0.93, False), (1.2, True), (0.001, True)])
def test_the_verdict_names_the_keys_to_examine_if_the_losses_differ(observed: float, differs: bool):
    assert ("model.head.prior" in judge_first_loss(observed, 1.0)) == differs


def step_lines(trainer: Trainer, caplog: pytest.LogCaptureFixture, steps: int = 1) -> list[tuple[float, float]]:
    """Return the observed and expected loss of each line that the steps log."""
    caplog.clear()
    batches = iter(trainer.loader)
    with caplog.at_level(logging.INFO, logger="detector.engine.step"):
        for _ in range(steps):
            trainer.step([next(batches) for _ in range(trainer.settings.accumulation)])
    return [tuple(map(float, r.args[:2])) for r in caplog.records if r.name == "detector.engine.step"]


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"loss.classification={name}"] for name in LOSSES if not CLASSIFICATION_LOSSES.get(name).use_quality),
        ["train.accumulation=2"],
        ["train.accumulation=2", "loss.normaliser=image"],
        ["loss.normaliser=ema", "model.head.prior=0.1"],
        ["loss.classification=cross_entropy", "model.head.prior=null"],
        ["loss.classification=cross_entropy", "anchor_sampler=random"],
        ["anchor_sampler=hard_negatives"],
        ["loss.classification={type: focal, class_weights: effective_number, rescale: true}", "assigner=atss"],
    ],
    ids=", ".join,
)
def test_the_first_loss_of_a_new_model_is_the_expected_loss(
    overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    trainer = tiny_trainer(tmp_path, *overrides)
    ((observed, wanted),) = step_lines(trainer, caplog)
    assert observed == pytest.approx(wanted, rel=0.05) and wanted > 0


def test_only_the_first_step_logs_the_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    trainer = tiny_trainer(tmp_path)
    assert len(step_lines(trainer, caplog, steps=3)) == 1
    with torch.no_grad():
        trainer.model.head.class_branch.output.bias.fill_(-4.6)  # the bias of a new model
    assert step_lines(trainer, caplog) == []


def test_a_loss_with_the_quality_of_random_boxes_has_no_expected_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert step_lines(tiny_trainer(tmp_path, "loss.classification=quality_focal"), caplog) == []


def test_a_head_with_different_biases_has_no_expected_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    trainer = tiny_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.head.class_branch.output.bias[0] += 0.1
    assert step_lines(trainer, caplog) == []


def test_the_line_shows_a_wrong_reduction(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    trainer = tiny_trainer(tmp_path)
    trainer.criterion.classification = Averaging()
    ((observed, wanted),) = step_lines(trainer, caplog)
    assert wanted > 10 * observed
