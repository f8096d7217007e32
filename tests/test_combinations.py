"""Each loss works with each sampler, assigner and box loss that a config may combine, and other combinations fail."""

import math
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
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
COMBINATIONS = [  # the box loss alternates, so that each loss, sampler and assigner is combined with both
    (loss, sampler, rule, BOXES[(i + j + k) % 2])
    for (i, loss), (j, sampler), (k, rule) in product(enumerate(LOSSES), enumerate(SAMPLERS), enumerate(RULES))
    # two rules have all combinations; the others have each pair of rule and loss, of rule and sampler
    if (sampler == "all" if loss == "ohem" else rule in ("max_iou", "atss") or (i + j + k) % len(SAMPLERS) == 0)
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def trainer(scenes: Path) -> Trainer:
    """A trainer with plain gradient descent, so that a weight without a gradient does not change."""
    return tiny_trainer(scenes, "train.momentum=0", "train.weight_decay=0", "train.lr=0.1")


@pytest.fixture(scope="module")
def start(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def criterion_of(folder: Path, *overrides: str):
    config = tiny_config(folder, *overrides)
    return build_criterion(config, build_dataset(config, "train"))


def assert_refused(folder: Path, overrides: tuple[str, ...], key: str, *facts: str) -> None:
    """Assert that the config or its criterion is refused with an error that names the key and contains the facts."""
    with pytest.raises(UserError) as error:
        criterion_of(folder, *overrides)
    where, _, message = str(error.value).partition(": ")
    assert where == key and all(fact in message for fact in facts) and "\n" not in message


def test_the_registries_have_the_parts_of_the_library():
    assert len(LOSSES) >= 11 and len(SAMPLERS) >= 3 and len(RULES) >= 6 and len(COMBINATIONS) >= 106


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
    assert 0 < measured["fg_gradient_share"] < 1 + 1e-5  # 1 where background at the initial score has no gradient
    assert measured["cls"] == pytest.approx((measured["cls_fg"] + measured["cls_bg"]).item(), rel=1e-5)
    after = trainer.model.state_dict()
    for name in ("backbone.conv1.weight", "head.class_branch.output.weight", "head.box_branch.output.weight"):
        moved = (after[name] - start[name]).abs().max()
        assert 0 < moved < math.inf, name


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "all"])
def test_ohem_with_a_sampler_that_selects_anchors_is_refused(sampler: str, scenes: Path):
    overrides = ("loss.classification=ohem", f"anchor_sampler={sampler}")
    assert_refused(scenes, overrides, "anchor_sampler", repr(sampler), "ohem", "anchor_sampler=all")


def test_a_background_threshold_above_the_foreground_threshold_is_refused(scenes: Path):
    assert_refused(scenes, ("assigner.background=0.6",), "assigner.background", "0.6", "assigner.foreground", "0.5")
    assert_refused(scenes, ("assigner={foreground: 0.3}",), "assigner.background", "0.4", "assigner.foreground", "0.3")
    tiny_config(scenes, "assigner={foreground: 0.3, background: 0.3}")


@pytest.mark.parametrize(
    ("key", "value"),
    [("alpha", "[0.25, 0.5]"), ("class_weights", "[1, 2]"), ("class_counts", "[3, 4]"), ("alpha", "[]")],
)
@pytest.mark.parametrize("loss", ["focal", "cross_entropy"])
def test_a_list_that_does_not_have_a_value_for_each_class_is_refused(loss: str, key: str, value: str, scenes: Path):
    num_values = len(yaml.safe_load(value))
    overrides = (f"loss.classification={{type: {loss}, {key}: {value}}}",)
    assert_refused(scenes, overrides, f"loss.classification.{key}", f"{num_values} values", "6 classes")


def test_class_weights_use_the_counts_of_the_training_set(scenes: Path):
    spec = "data.train.zipf=1", "data.train.objects=5"
    weighted = "loss.classification={type: focal, class_weights: effective_number, beta: 0.9}"
    counts: Counter = Counter()
    for sample in build_dataset(tiny_config(scenes, *spec), "train"):
        counts.update(sample.labels[~sample.ignore].tolist())
    weights = [0.1 / (1 - 0.9 ** max(counts[k], 1)) for k in range(6)]
    expected = [weight * 6 / sum(weights) for weight in weights]
    assert max(expected) > 2 * min(expected)
    assert criterion_of(scenes, *spec, weighted).classification.class_weight.tolist() == pytest.approx(expected)
    equal = "loss.classification.class_counts=[5, 5, 5, 5, 5, 5]"
    assert criterion_of(scenes, *spec, weighted, equal).classification.class_weight.tolist() == pytest.approx([1] * 6)


def test_equalized_focal_gets_the_number_of_classes(scenes: Path):
    more = ("data.train.num_classes=7", "data.val.num_classes=7")
    for overrides, num_classes in (((), 6), (more, 7)):
        loss = criterion_of(scenes, "loss.classification=equalized_focal", *overrides).classification
        assert loss.gradient_sums.shape == (2, num_classes)
    assert "num_classes: null" in to_yaml(tiny_config(scenes, "loss.classification=equalized_focal"))


def test_another_number_of_classes_is_refused(scenes: Path):
    overrides = ("loss.classification={type: equalized_focal, num_classes: 99}",)
    assert_refused(scenes, overrides, "loss.classification.num_classes", "99", "6 classes")


class Counting(ClassificationLoss):
    """A loss of a user, which has the counts of the classes but no class weights."""

    def __init__(self, *, class_counts: list[int] | None = None):
        super().__init__()
        self.class_counts = class_counts


def test_a_loss_of_a_user_gets_the_counts(scenes: Path):
    CLASSIFICATION_LOSSES.register("test_counting")(Counting)
    loss = criterion_of(scenes, "loss.classification=test_counting").classification
    counts = build_dataset(tiny_config(scenes), "train").class_counts().tolist()
    assert loss.class_counts == counts and sum(counts) > 6
