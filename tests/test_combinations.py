"""Every loss works with each sampler, assigner and box loss that a config may name beside it; the rest is refused."""

import math
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch
from tiny import names_of_the_library, tiny_config, tiny_trainer

from detector.build import build_criterion, build_dataset, facts
from detector.config import to_yaml
from detector.core.errors import UserError
from detector.engine.trainer import Trainer
from detector.geometry.assignment.base import ASSIGNERS
from detector.losses import ANCHOR_SAMPLERS, CLASSIFICATION_LOSSES
from detector.losses.base import ClassificationLoss

LOSSES, SAMPLERS, RULES = map(names_of_the_library, (CLASSIFICATION_LOSSES, ANCHOR_SAMPLERS, ASSIGNERS))
BOXES = ["smooth_l1", "giou"]
COMBINATIONS = [  # the box loss alternates: each meets each loss, sampler and assigner
    (loss, sampler, rule, BOXES[(i + j + k) % 2])
    for (i, loss), (j, sampler), (k, rule) in product(enumerate(LOSSES), enumerate(SAMPLERS), enumerate(RULES))
    if loss != "ohem" or sampler == "all"
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def trainer(scenes: Path) -> Trainer:
    """Plain gradient descent, so that weights move by their gradient alone."""
    return tiny_trainer(scenes, "train.momentum=0", "train.weight_decay=0", "train.lr=0.1")


@pytest.fixture(scope="module")
def start(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def criterion_of(folder: Path, *overrides: str):
    config = tiny_config(folder, *overrides)
    return build_criterion(config, build_dataset(config, "train"))


def refusal(folder: Path, *overrides: str) -> str:
    """What loading the config, or building the criterion, says in its one line."""
    with pytest.raises(UserError) as error:
        criterion_of(folder, *overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_there_is_something_to_combine():
    assert len(LOSSES) >= 11 and len(SAMPLERS) >= 3 and len(RULES) >= 2 and len(COMBINATIONS) >= 62


@pytest.mark.parametrize(("loss", "sampler", "rule", "box"), COMBINATIONS)
def test_a_step(loss: str, sampler: str, rule: str, box: str, trainer: Trainer, start: dict, scenes: Path):
    overrides = (f"loss.classification={loss}", f"anchor_sampler={sampler}", f"assigner={rule}", f"loss.box={box}")
    config = tiny_config(scenes, *overrides)
    trainer.model.load_state_dict(start)
    dataset = build_dataset(config, "train")
    trainer.step.criterion = build_criterion(config, dataset)
    trainer.step.assigner = config.assigner.build(facts(dataset))
    trainer.step.steps_done = 0  # the first step also computes the loss of the initial scores
    torch.manual_seed(0)
    measured = trainer.step([next(iter(trainer.loader))])

    assert all(value.isfinite() for value in measured.values())
    assert measured["num_fg"] > 0 and measured["box"] > 0 and measured["cls"] > 0
    assert 0 < measured["fg_gradient_share"] < 1 + 1e-5  # 1 where a loss lets go of background as sure as the prior
    assert measured["cls"] == pytest.approx((measured["cls_fg"] + measured["cls_bg"]).item(), rel=1e-5)
    after = trainer.model.state_dict()
    for name in ("backbone.conv1.weight", "head.class_branch.output.weight", "head.box_branch.output.weight"):
        moved = (after[name] - start[name]).abs().max()
        assert 0 < moved < math.inf, name


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "all"])
def test_ohem_and_a_sampler_that_chooses_too_are_refused(sampler: str, scenes: Path):
    line = refusal(scenes, "loss.classification=ohem", f"anchor_sampler={sampler}")
    assert line == (
        f"anchor_sampler: {sampler!r} is wrong: ohem chooses its anchors itself, by their loss; set anchor_sampler: "
        "all, or another loss"
    )


def test_a_background_threshold_above_that_of_foreground_is_refused(scenes: Path):
    line = "assigner.background: should not exceed assigner.foreground"
    assert refusal(scenes, "assigner.background=0.6") == line
    assert refusal(scenes, "assigner={foreground: 0.3}") == line
    tiny_config(scenes, "assigner={foreground: 0.3, background: 0.3}")


@pytest.mark.parametrize(
    ("key", "value"),
    [("alpha", "[0.25, 0.5]"), ("class_weights", "[1, 2]"), ("class_counts", "[3, 4]"), ("alpha", "[]")],
)
@pytest.mark.parametrize("loss", ["focal", "cross_entropy"])
def test_a_list_of_another_length_than_the_classes_is_refused(loss: str, key: str, value: str, scenes: Path):
    line = refusal(scenes, f"loss.classification={{type: {loss}, {key}: {value}}}")
    assert line == f"loss.classification.{key}: {len(value.split(',')) if value != '[]' else 0} values for 6 classes"


def test_class_weights_take_their_counts_from_the_training_set(scenes: Path):
    spec = "data.train.zipf=1", "data.train.objects=5"
    weighted = "loss.classification={type: focal, class_weights: effective_number, beta: 0.9}"
    counts: Counter = Counter()
    for sample in build_dataset(tiny_config(scenes, *spec), "train"):
        counts.update(sample.labels[~sample.ignore].tolist())
    weights = [0.1 / (1 - 0.9 ** max(counts[k], 1)) for k in range(6)]
    expected = [weight * 6 / sum(weights) for weight in weights]
    assert max(expected) > 2 * min(expected)
    assert criterion_of(scenes, *spec, weighted).classification.class_weight.tolist() == pytest.approx(expected)
    own = "loss.classification.class_counts=[5, 5, 5, 5, 5, 5]"
    assert criterion_of(scenes, *spec, weighted, own).classification.class_weight.tolist() == pytest.approx([1] * 6)


def test_equalized_focal_gets_the_number_of_classes(scenes: Path):
    more = ("data.train.num_classes=7", "data.val.num_classes=7")
    for overrides, num_classes in (((), 6), (more, 7)):
        loss = criterion_of(scenes, "loss.classification=equalized_focal", *overrides).classification
        assert loss.gradient_sums.shape == (2, num_classes)
    assert "num_classes: null" in to_yaml(tiny_config(scenes, "loss.classification=equalized_focal"))


def test_another_number_of_classes_is_refused(scenes: Path):
    line = refusal(scenes, "loss.classification={type: equalized_focal, num_classes: 99}")
    assert line == "loss.classification.num_classes: 99, but the data set has 6"


class Counting(ClassificationLoss):
    """A user's own, with counts for something else than class weights."""

    def __init__(self, *, class_counts: list[int] | None = None):
        super().__init__()
        self.class_counts = class_counts


def test_a_loss_of_ones_own_gets_the_counts_too(scenes: Path):
    CLASSIFICATION_LOSSES.register("test_counting")(Counting)
    loss = criterion_of(scenes, "loss.classification=test_counting").classification
    counts = build_dataset(tiny_config(scenes), "train").class_counts().tolist()
    assert loss.class_counts == counts and sum(counts) > 6
