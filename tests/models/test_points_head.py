"""The head `points`: torchvision's FCOS, its settings, and trainings."""

from pathlib import Path

import pytest
import torch
from criteria import criterion_of_losses
from tiny import tiny_config, tiny_trainer
from torch import Tensor
from torchvision.models.detection.fcos import FCOSHead

from detector.build import build_census, build_dataset, build_probe
from detector.core.errors import UserError
from detector.core.structures import GroundTruth, Predictions, Priors
from detector.geometry.assignment import ASSIGNERS
from detector.losses import BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.models.heads.points import PointHead

STRIDES, SIZE = (8, 16, 32), (96, 160)


def draw_maps(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 32, *(side // stride for side in SIZE), generator=generator) for stride in STRIDES]


def predict(head: PointHead, maps: list[Tensor]) -> Predictions:
    levels = head.priors(SIZE)
    logits, raw, *quality = head(maps)
    return Predictions(logits, raw, Priors(torch.cat(levels), tuple(map(len, levels)), STRIDES), head.coder, *quality)


@pytest.fixture(scope="module")
def theirs() -> FCOSHead:
    """torchvision's head with random weights and biases."""
    torch.manual_seed(0)
    head = FCOSHead(32, num_anchors=1, num_classes=3, num_convs=2)
    for name, parameter in head.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("conv.1." in name or "conv.4." in name), std=0.1)
    return head


@pytest.fixture(scope="module")
def ours(theirs: FCOSHead) -> PointHead:
    head = PointHead(3, 32, STRIDES, depth=2, conv_bias=True, scales=False, at_corners=True)
    names = {
        "classification_head.conv": "class_branch.tower",
        "classification_head.cls_logits": "class_branch.output",
        "regression_head.conv": "box_branch.tower",
        "regression_head.bbox_reg": "box_branch.output",
        "regression_head.bbox_ctrness": "quality_branch.output",
    }
    state = {}
    for name, value in theirs.state_dict().items():
        old = next(prefix for prefix in names if name.startswith(prefix))
        state[names[old] + name.removeprefix(old)] = value
    head.load_state_dict(state)
    return head


def test_predictions_and_losses_equal_torchvisions_fcos(theirs: FCOSHead, ours: PointHead):
    maps = draw_maps()
    predictions, outputs = predict(ours, maps), theirs(maps)
    for value, key in ((predictions.logits, "cls_logits"), (predictions.raw, "bbox_regression")):
        assert value.std() > 0.1
        torch.testing.assert_close(value, outputs[key])
    torch.testing.assert_close(predictions.box_quality[..., None], outputs["bbox_ctrness"])
    anchors = predictions.priors.boxes
    torch.testing.assert_close(predictions.boxes, theirs.box_coder.decode(outputs["bbox_regression"], anchors))

    boxes = torch.tensor([[[10.0, 8, 60, 50], [70, 20, 150, 90]], [[5, 30, 33, 70], [0, 0, 0, 0]]])
    labels = torch.tensor([[2, 0], [1, -1]])
    truth = GroundTruth(boxes, labels, torch.zeros(2, 2, dtype=torch.bool))
    targets = ASSIGNERS.build("atss", 3)(predictions.priors, truth)
    criterion = criterion_of_losses(
        CLASSIFICATION_LOSSES.build("focal"), BOX_LOSSES.build("giou"), 3, box_quality="centerness"
    )
    num_fg = criterion.count_foreground([targets])
    assert num_fg > 5
    terms = criterion(predictions, targets, num_fg).weighted
    expected = theirs.compute_loss(
        [{"boxes": boxes[0], "labels": labels[0]}, {"boxes": boxes[1, :1], "labels": labels[1, :1]}],
        outputs,
        [anchors, anchors],
        list(targets.matched.masked_fill(targets.labels == 3, -1)),
    )
    assert list(terms) == criterion.term_names == ["cls", "box", "quality"]
    for value, other in zip(terms.values(), expected.values(), strict=True):
        torch.testing.assert_close(value, other)


@pytest.mark.parametrize("activation", ["relu", "exp", "softplus"])
@pytest.mark.parametrize("reg_max", [None, 5])
@pytest.mark.parametrize("towers", ["separate", "shared"])
def test_settings(towers: str, reg_max: int | None, activation: str):
    """The raw boxes of a level are the activation of its factor times the output of the box tower."""
    torch.manual_seed(0)
    head = PointHead(
        3, 32, STRIDES, depth=1, towers=towers, reg_max=reg_max, activation=activation, quality=None, prior=0.1
    )
    factors = torch.tensor([0.5, 1.5, 2.0])
    head.scales.data = factors
    torch.nn.init.normal_(head.box_branch.output.weight, std=0.1)
    maps = draw_maps()
    predictions = predict(head, maps)
    assert predictions.box_quality is None and head.is_untrained
    assert ("class_branch.tower.0.weight" in head.state_dict()) == (towers == "separate")
    assert predictions.logits.sigmoid().mean().item() == pytest.approx(head.initial_score, abs=0.01)
    start = 0
    for x, factor in zip(maps, factors, strict=True):
        output = head.box_branch.output(head.box_branch.tower(x)).double() * factor
        if reg_max is None:
            output = {
                "relu": output.clamp(min=0), "exp": output.exp(), "softplus": (1 + output.exp()).log()
            }[activation]  # fmt: skip
        rows = output.flatten(2).transpose(1, 2)
        torch.testing.assert_close(predictions.raw[:, start : start + rows.shape[1]], rows.float())
        start += rows.shape[1]
    assert start == len(predictions.priors) == predictions.raw.shape[1]
    assert (predictions.boxes[..., 2:] >= predictions.boxes[..., :2]).all()


POINTS = ("assigner=atss", "train.lr=0.01", "train.warmup_steps=0", "train.meter_every=1")
FCOS = "model.head={type: points, depth: 1}", "loss.box=giou"
GFL = (
    "model.head={type: points, depth: 1, reg_max: 16, towers: shared, quality: iou}",
    "loss.classification=quality_focal",
    "loss.box=[{type: giou, weight: 2.0}, {type: dfl, weight: 0.25}]",
    "loss.box_rows=score",
)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [FCOS, GFL], ids=["FCOS", "GFL"])
def test_a_training_on_drawn_scenes(overrides: tuple[str, ...], tmp_path: Path):
    trainer = tiny_trainer(tmp_path, *POINTS, *overrides, "train.batch_size=4")
    batch = next(iter(trainer.loader))
    rows = [trainer.step([batch]) for _ in range(12)]
    if overrides == FCOS:  # the random boxes of a new model decide the quality focal loss
        assert rows[0]["cls"].item() == pytest.approx(trainer.step.expected_loss, rel=0.2)
    for name in trainer.criterion.term_names:
        assert rows[0][name] > 0 and rows[-1][name].isfinite()
    assert sum(row["loss"] for row in rows[-3:]) < 0.9 * sum(row["loss"] for row in rows[:3])
    metrics, detections = trainer.evaluate(trainer.model)
    assert 0 <= metrics["AP"] <= 1 and len(detections) > 0
    config = tiny_config(tmp_path, *POINTS, *overrides)
    dataset = build_dataset(config, "val")
    probe = build_probe(config, dataset, torch.device("cpu"), torch.float32)(trainer.model).compute()
    census = build_census(config, dataset)
    assert probe.rows == census.anchors and probe.rows.foreground > 0
    assert census.anchor_suggestion is None and census.matches.low_quality == 0


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("loss.box=dfl",), "loss.box"),
        (("model.head={type: points, reg_max: 8}",), "loss.box"),
        (("model.head={type: points, reg_max: 8}", "loss.box=[giou, ghm_r]"), "loss.box"),
        (("loss.box_rows=quality", "assigner=atss"), "loss.box_rows"),
        (("loss.box_rows=score", "loss.box=ghm_r"), "loss.box_rows"),
        (("loss.box_rows=score", "train.accumulation=2"), "train.accumulation"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: tuple[str, ...], key: str, tmp_path: Path):
    with pytest.raises(UserError) as error:
        tiny_trainer(tmp_path, *overrides)
    assert str(error.value).startswith(f"{key}: ") and error.value.remedy and "\n" not in str(error.value)
