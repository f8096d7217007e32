"""The network against torchvision's RetinaNet, its initial state, and files of weights."""

import logging
import math
import pickle
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from criteria import criterion_of_losses
from tiny import tiny_config
from torch import Tensor, nn
from torchvision.models.detection import (
    RetinaNet_ResNet50_FPN_Weights,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detector.build import build_model
from detector.config import Config, config_from_text, to_yaml
from detector.core.errors import UserError
from detector.core.structures import GroundTruth, Predictions
from detector.geometry.assignment import MaxIoUAssigner
from detector.geometry.coders import DeltaCoder
from detector.losses.focal import FocalLoss
from detector.losses.iou import GIoULoss
from detector.losses.smooth_l1 import L1Loss
from detector.models.backbones.resnet import frozen_batch_norm_is_random
from detector.models.detector import DetectionModel
from detector.models.postprocess import postprocess
from detector.models.weights.imported import rename
from detector.models.weights.load import load_weights
from detector.models.weights.torchvision import NAMES

DELTAS = DeltaCoder()

RATIOS = (0.5, 1.0, 2.0)

ROUNDING = {"rtol": 0, "atol": 1e-3}  # fp32 through the 60 layers of R50; the logits have a standard deviation of 1.5
COCO_NAMES = tuple(RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"])  # 91, also for the unused ids


SMALL = """
data: {train: synthetic, val: synthetic}
model:
  backbone: {type: resnet18, norm: batch, trainable_stages: 5}
  width: 32
  head: {depth: 1}
"""


def make_model(num_classes: int = 3, *overrides: str) -> DetectionModel:
    """Build a small model. The overrides are keys of the model section."""
    config = config_from_text(SMALL, "SMALL", [f"model.{override}" for override in overrides])
    return build_model(config, num_classes)


def make_resnet50(num_classes: int, *overrides: str) -> DetectionModel:
    backbone = "backbone={type: resnet50, norm: batch, trainable_stages: 5}"
    return make_model(num_classes, backbone, "width=256", "head.depth=4", *overrides)


# ---- torchvision's network and ours, with the same weights and images


@dataclass
class Reference:
    """torchvision's model, two normalized and padded images (160x224 and 160x192 pixels), and its outputs.

    `overrides` are the keys of the model section in which our model differs from the first version.
    """

    model: nn.Module
    overrides: tuple[str, ...]
    file: Path
    images: Tensor
    sizes: list[tuple[int, int]]
    features: list[Tensor]
    outputs: dict[str, Tensor]
    anchors: list[Tensor]


@torch.no_grad()
def settle(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Set the parameters of torchvision's RetinaNet to values of a useful scale, and return its pyramid maps."""
    # statistics of real activations, so that features keep their scale through all layers
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    model.train().backbone(images)
    model.eval()
    # all biases differ, so that the test finds a missing or exchanged parameter
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.05 if "cls_logits" not in name and "bbox_reg" not in name else 0)
        elif "conv" in name and name.endswith(".1.weight"):
            parameter.uniform_(0.5, 1.5)  # of the group norms
    levels = list(model.backbone(images).values())
    # scores are near 0.05, and rounding makes no two of them equal; boxes differ from their anchors
    heads, outputs = model.head, model.head(levels)
    for output, key, std in (
        (heads.classification_head.cls_logits, "cls_logits", 1.5),
        (heads.regression_head.bbox_reg, "bbox_regression", 0.3),
    ):
        output.weight.mul_(std / outputs[key].std())
        output.bias.normal_(std=0.2)
    heads.classification_head.cls_logits.bias.sub_(4)
    return levels


VERSIONS = {
    "v1": (retinanet_resnet50_fpn, ()),
    "v2": (retinanet_resnet50_fpn_v2, ("pyramid_top=c5", "head.norm=group")),
}


@pytest.fixture(scope="module", params=VERSIONS)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    make, overrides = VERSIONS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(weights=None, weights_backbone=None, num_classes=91, min_size=160, max_size=224)
        pictures = [torch.rand(3, 160, 224), torch.rand(3, 160, 192)]
        images, _ = model.transform(pictures)
        with torch.no_grad():
            levels = settle(model, images.tensors)
            outputs = model.head(levels)
            anchors = model.anchor_generator(images, levels)
    file = tmp_path_factory.mktemp("weights") / "retinanet.pth"
    torch.save(model.state_dict(), file)
    yield Reference(model, overrides, file, images.tensors, images.image_sizes, levels, outputs, anchors)
    file.unlink()


first_version = pytest.mark.parametrize("reference", ["v1"], indirect=True)


@pytest.fixture(scope="module")
def ours(reference: Reference) -> DetectionModel:
    model = make_resnet50(91, *reference.overrides)
    load_weights(model, f"torchvision_retinanet:{reference.file}", COCO_NAMES)
    return model.eval()


def as_predictions(reference: Reference, ours: DetectionModel) -> Predictions:
    """Return torchvision's outputs as predictions with gradients."""
    logits, deltas = (reference.outputs[k].clone().requires_grad_() for k in ("cls_logits", "bbox_regression"))
    return Predictions(logits, deltas, ours.priors(reference.images.shape[-2:], torch.device("cpu")), DELTAS)


@torch.no_grad()
def test_logits_deltas_and_anchors_equal_torchvision(reference: Reference, ours: DetectionModel):
    predictions = ours(reference.images)
    logits, deltas = reference.outputs["cls_logits"], reference.outputs["bbox_regression"]
    assert logits.std() > 1 and deltas.std() > 0.1  # otherwise the test proves nothing
    torch.testing.assert_close(predictions.logits, logits, **ROUNDING)
    torch.testing.assert_close(predictions.raw, deltas, **ROUNDING)
    assert torch.equal(predictions.priors.boxes, reference.anchors[0])
    assert sum(predictions.priors.level_sizes) == len(predictions.priors) == logits.shape[1]


@pytest.mark.parametrize("backbone", ["resnet34", pytest.param("resnet101", marks=pytest.mark.slow)])
@torch.no_grad()
def test_in_float64_the_models_are_equal(backbone: str, tmp_path: Path):
    """In fp32, rounding hides small errors, and it grows with the depth."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = resnet_fpn_backbone(
            backbone_name=backbone,
            weights=None,
            norm_layer=nn.BatchNorm2d,
            trainable_layers=5,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
        )
        generator = _default_anchorgen()
        reference = torchvision.models.detection.RetinaNet(body, 3, anchor_generator=generator).double()
        images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
        levels = settle(reference, images)
    file = tmp_path / "retinanet.pth"
    torch.save(reference.state_dict(), file)
    model = make_model(3, f"backbone={{type: {backbone}, norm: batch}}", "width=256", "head.depth=4").double().eval()
    load_weights(model, f"torchvision_retinanet:{file}", ("a", "b", "c"))
    predictions, outputs = model(images), reference.head(levels)
    assert predictions.logits.dtype == torch.float64 and outputs["cls_logits"].std() > 1
    torch.testing.assert_close(predictions.logits, outputs["cls_logits"], rtol=0, atol=1e-9)
    torch.testing.assert_close(predictions.raw, outputs["bbox_regression"], rtol=0, atol=1e-9)


@first_version
@torch.no_grad()
def test_frozen_norms_give_the_same_logits(reference: Reference, ours: DetectionModel):
    frozen = make_resnet50(91, "backbone.norm=frozen")
    assert frozen_batch_norm_is_random(frozen.backbone.state_dict())
    load_weights(frozen, f"torchvision_retinanet:{reference.file}", COCO_NAMES)
    assert not frozen_batch_norm_is_random(frozen.backbone.state_dict())
    torch.testing.assert_close(frozen.train()(reference.images).logits, ours(reference.images).logits, **ROUNDING)


@first_version
@torch.no_grad()
def test_uint8_images_are_normalized_as_in_torchvision(reference: Reference, ours: DetectionModel):
    pixels = torch.randint(0, 256, (1, 3, 160, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images, _ = reference.model.transform([pixels[0] / 255])
    torch.testing.assert_close(ours(pixels).logits, ours(images.tensors).logits, **ROUNDING)


@pytest.mark.parametrize("counts", [(5, 2), (0, 3)])
def test_losses_and_their_gradients_equal_torchvision(
    reference: Reference, ours: DetectionModel, counts: tuple[int, int]
):
    generator = torch.Generator().manual_seed(3)
    boxes, labels = torch.zeros(2, 5, 4), torch.full((2, 5), -1)
    for i, n in enumerate(counts):
        corners = torch.rand(n, 2, 2, generator=generator).sort(dim=1).values * 150
        boxes[i, :n] = corners.flatten(1)
        labels[i, :n] = torch.randint(91, (n,), generator=generator)

    theirs = as_predictions(reference, ours)
    expected = reference.model.compute_loss(
        [{"boxes": boxes[i, :n], "labels": labels[i, :n]} for i, n in enumerate(counts)],
        {"cls_logits": theirs.logits, "bbox_regression": theirs.raw},
        reference.anchors,
    )
    sum(expected.values()).backward()

    predictions = as_predictions(reference, ours)
    box_loss = {"l1": L1Loss, "giou": GIoULoss}[reference.model.head.regression_head._loss_type]()
    criterion = criterion_of_losses(FocalLoss(alpha=0.25, gamma=2.0), box_loss, 91, normaliser="image")
    truth = GroundTruth(boxes, labels, torch.zeros_like(labels, dtype=torch.bool))
    targets = MaxIoUAssigner(91)(predictions.priors, truth)
    terms = criterion(predictions, targets, criterion.count_foreground([targets]))
    (terms.weighted["cls"] + terms.weighted["box"]).backward()

    torch.testing.assert_close(terms.weighted["cls"], expected["classification"], rtol=1e-5, atol=0)
    torch.testing.assert_close(terms.weighted["box"], expected["bbox_regression"], rtol=1e-5, atol=0)
    torch.testing.assert_close(predictions.logits.grad, theirs.logits.grad, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(predictions.raw.grad, theirs.raw.grad, rtol=1e-5, atol=1e-9)
    assert predictions.raw.grad.any()


def by_class(boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Return rows (label, score, box), sorted by class and score."""
    order = (labels * 2 + scores.double()).argsort()
    return torch.cat((labels[order, None].double(), scores[order, None].double(), boxes[order].double()), dim=1)


def test_detections_equal_torchvision(reference: Reference, ours: DetectionModel, monkeypatch: pytest.MonkeyPatch):
    """torchvision also returns boxes without area inside their image. They are removed here."""
    predictions = as_predictions(reference, ours)
    flat = {k: list(v.split(predictions.priors.level_sizes, dim=1)) for k, v in reference.outputs.items()}
    per_level = [list(a.split(predictions.priors.level_sizes)) for a in reference.anchors]
    monkeypatch.setattr(reference.model, "detections_per_img", 10_000)
    expected = reference.model.postprocess_detections(flat, per_level, reference.sizes)
    has_area = [(theirs["boxes"][:, 2:] > theirs["boxes"][:, :2]).all(dim=1) for theirs in expected]
    assert not all(map(torch.all, has_area))
    expected = [
        {key: values[rows][:300] for key, values in theirs.items()}
        for theirs, rows in zip(expected, has_area, strict=True)
    ]
    # each rule has an effect: a level has more than 1000 candidates, and some boxes overlap
    assert (flat["cls_logits"][0][0].sigmoid() > 0.05).sum() > 1000

    sizes = torch.tensor(reference.sizes)
    limits = {"score_threshold": 0.05, "nms_iou": 0.5, "candidates_per_level": 1000, "max_detections": 300}
    results = postprocess(predictions, sizes, sizes, **limits)
    scaled_results = postprocess(predictions, sizes, sizes * torch.tensor([2, 3]), **limits)
    for result, theirs, scaled in zip(results, expected, scaled_results, strict=True):
        assert len(result.labels) == 300 and (result.scores.diff() <= 0).all()
        a, b = (by_class(*d) for d in ((result.boxes, result.scores, result.labels), theirs.values()))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-3)
        # sizes are (height, width): x follows the width
        torch.testing.assert_close(scaled.boxes, result.boxes * torch.tensor([3, 2, 3, 2]), rtol=1e-6, atol=0)


@first_version
def test_no_detections_above_the_threshold(ours: DetectionModel, reference: Reference):
    predictions = as_predictions(reference, ours)
    sizes = torch.tensor(reference.sizes)
    results = postprocess(
        predictions, sizes, sizes, score_threshold=0.9999, nms_iou=0.5, candidates_per_level=10, max_detections=10
    )
    assert [(d.boxes.shape, d.scores.shape, d.labels.shape) for d in results] == [((0, 4), (0,), (0,))] * 2


def test_a_coco_data_set_gets_the_channels_of_its_categories(reference: Reference):
    ids = [i for i, name in enumerate(COCO_NAMES) if name not in ("__background__", "N/A")]
    names = [COCO_NAMES[i] for i in ids]
    assert (len(ids), ids[-1], names[-1]) == (80, 90, "toothbrush")
    model = make_resnet50(80, *reference.overrides)
    load_weights(model, f"torchvision_retinanet:{reference.file}", names)
    with torch.no_grad():
        torch.testing.assert_close(
            model.head.class_branch(reference.features), reference.outputs["cls_logits"][..., ids], **ROUNDING
        )


@first_version
def test_other_classes_keep_their_initial_layer_with_a_warning(reference: Reference, caplog: pytest.LogCaptureFixture):
    model = make_resnet50(80)
    fresh = {k: v.clone() for k, v in model.head.class_branch.output.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        names = [f"part {i}" for i in range(80)]  # the number of COCO's classes
        load_weights(model, f"torchvision_retinanet:{reference.file}", names)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and str(reference.file) in record.getMessage()
    assert all(torch.equal(v, fresh[k]) for k, v in model.head.class_branch.output.state_dict().items())
    box_bias = reference.model.head.regression_head.bbox_reg.bias
    assert torch.equal(model.head.box_branch.output.bias, box_bias)


@pytest.mark.parametrize(
    ("head", "key"),
    [
        *(("anchors", key) for key in ("backbone.stride_in_1x1", "pyramid_relu", "head.exact")),
        ("points", "head.at_corners"),
    ],
)
def test_a_checkpoint_requires_its_structure(head: str, key: str, tmp_path: Path):
    """The weights alone do not show the values of these keys."""

    def make(*overrides: str) -> tuple[DetectionModel, Config]:
        config = tiny_config(tmp_path, f"model.head.type={head}", *overrides)
        return build_model(config, 2), config

    model, config = make()
    content = {"model": model.state_dict(), "config": to_yaml(config), "class_names": ["cat", "dog"]}
    torch.save(content, tmp_path / "a.pt")
    same, _ = make()
    load_weights(same, str(tmp_path / "a.pt"), ["dog", "cat"])
    bias = model.head.class_branch.output.bias.unflatten(0, (-1, 2)).flip(1).flatten()
    torch.testing.assert_close(same.head.class_branch.output.bias, bias)  # the channels follow the class names
    part, _, name = key.rpartition(".")
    section = config.model.model_dump(mode="json")
    value = not (section[part] if part else section)[name]
    other, _ = make(f"model.{key}={str(value).lower()}")
    with pytest.raises(UserError) as error:
        load_weights(other, str(tmp_path / "a.pt"), ["cat", "dog"])
    assert error.value.problem.startswith(f"{tmp_path / 'a.pt'}: ")
    assert error.value.remedy == f"set model.{key}={str(not value).lower()}"


@first_version
def test_names_of_older_releases(reference: Reference):
    """The published file has old names, which torchvision still reads.

    The convolutions of the heads have the numbers 0, 2, 4, 6. The convolutions of the pyramid are no blocks. Frozen
    norms count no batches.
    """
    new = reference.model.state_dict()
    old = {}
    for name, value in new.items():
        for i in range(4):
            name = name.replace(f"head.conv.{i}.0.", f"head.conv.{2 * i}.#.")
        name = name.replace("#.", "")
        name = name.replace("blocks.0.0.", "blocks.0.").replace("blocks.1.0.", "blocks.1.")
        name = name.replace("blocks.2.0.", "blocks.2.")
        if not name.endswith("num_batches_tracked"):
            old[name] = value
    assert "head.classification_head.conv.6.weight" in old and "backbone.fpn.inner_blocks.0.weight" in old
    reference.model.load_state_dict(old | {k: v for k, v in new.items() if k.endswith("num_batches_tracked")})

    renamed = rename(old, NAMES)
    expected = rename({k: v for k, v in new.items() if not k.endswith("num_batches_tracked")}, NAMES)
    assert renamed.keys() == expected.keys() == make_resnet50(91, "backbone.norm=frozen").state_dict().keys()
    assert all(renamed[name] is old_value for name, old_value in zip(renamed, old.values(), strict=True))
    assert all(torch.equal(renamed[name], expected[name]) for name in renamed)


# ---- the network itself


@pytest.mark.parametrize("norm", ["none", "group"])
@pytest.mark.parametrize("levels", [(3, 7), (3, 5), (4, 7), (3, 4)])
@torch.no_grad()
def test_every_anchor_has_its_logits(levels: tuple[int, int], norm: str):
    model = make_model(3, f"levels={list(levels)}", f"head.norm={norm}", "head.depth=2").eval()
    for height, width in ((96, 160), (32, 224)):
        predictions = model(torch.zeros(2, 3, height, width))
        expected = [9 * -(-height // 2**p) * -(-width // 2**p) for p in range(levels[0], levels[1] + 1)]
        assert list(predictions.priors.level_sizes) == expected
        assert predictions.logits.shape == (2, sum(expected), 3)
        assert predictions.raw.shape == (2, sum(expected), 4)
        assert predictions.priors.boxes.shape == (sum(expected), 4)
    assert model.priors((96, 160), torch.device("cpu")) is model.priors((96, 160), torch.device("cpu"))


def test_configured_anchor_sizes():
    model = make_model(3, "levels=[3, 4]", "head.sizes=[[8, 12], [16, 24]]", "head.ratios=[0.5, 1.0]")
    assert model.priors((32, 32), torch.device("cpu")).level_sizes == (4 * 4 * 4, 2 * 2 * 4)
    for sizes in ("[[8, 12], [16]]", "[[8, 12]]"):
        with pytest.raises(UserError) as error:
            make_model(3, "levels=[3, 4]", f"head.sizes={sizes}")
        assert error.value.problem.startswith("model.head.sizes: ") and "2" in error.value.remedy


@pytest.mark.parametrize("head_norm", ["none", "group"])
@torch.no_grad()
def test_scores_start_at_the_prior(head_norm: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make_model(3, f"head={{norm: {head_norm}, depth: 4}}", "width=64")
        scores = model(torch.randn(2, 3, 128, 160)).logits.sigmoid()
    assert scores.mean() == pytest.approx(0.01, rel=0.1)
    assert make_model(3, "head.prior=0.2").head.class_branch.output.bias.sigmoid().tolist() == pytest.approx([0.2] * 27)
    assert not make_model(3, "head.prior=null").head.class_branch.output.bias.any()


@pytest.mark.parametrize("head_norm", ["none", "group"])
@pytest.mark.parametrize("trainable", [0, 2, 5])
def test_gradient_reaches_every_trainable_parameter_and_no_frozen_one(trainable: int, head_norm: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make_model(3, f"backbone.trainable_stages={trainable}", f"head={{norm: {head_norm}, prior: 0.3}}")
        predictions = model(torch.randn(2, 3, 128, 128))
    (predictions.logits.square().sum() + predictions.raw.sin().sum()).backward()
    stages = ["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]
    frozen = tuple(f"backbone.{name}." for stage in stages[: 5 - trainable] for name in stage)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen or "none is")
        if parameter.requires_grad:
            assert parameter.grad.any(), f"no gradient reaches {name}"
        else:
            assert parameter.grad is None


# ---- files


def file_of(state: Any, tmp_path: Path) -> str:
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    return str(path)


def refusal(weights: str, *overrides: str) -> UserError:
    with pytest.raises(UserError) as error:
        load_weights(make_model(3, *overrides), weights, ("a", "b", "c"))
    assert error.value.remedy and len(str(error.value)) < 400
    return error.value


def test_backbone_from_a_file(tmp_path: Path):
    resnet = torchvision.models.resnet18(weights=None)
    nn.init.constant_(resnet.bn1.running_mean, 0.5)
    model = make_model(3, "backbone.norm=frozen")
    load_weights(model, file_of(resnet.state_dict(), tmp_path), ("a", "b", "c"))
    state = resnet.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.backbone.state_dict().items())


def test_published_backbone_from_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """torch.hub checks the hash of a downloaded file, but not of a file in its cache."""
    resnet = torchvision.models.resnet18(weights=None)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(resnet.state_dict(), tmp_path / "hub/checkpoints/resnet18-f37072fd.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = make_model()
    load_weights(model, "IMAGENET1K_V1", ("a", "b", "c"))
    assert torch.equal(model.backbone.conv1.weight, resnet.conv1.weight)


def test_published_backbone_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    assert "resnet18-f37072fd.pth" in refusal("IMAGENET1K_V1").problem


def test_a_checkpoint_gives_its_classes_or_no_class_layer(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    trained = make_model()
    nn.init.constant_(trained.head.class_branch.output.bias, 7)
    contents = {"model": trained.state_dict(), "class_names": ["a", "b", "c"], "config": "model: {}"}
    path = file_of(contents, tmp_path)
    same = make_model()
    load_weights(same, path, ("a", "b", "c"))
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in same.state_dict().items())
    by_class = trained.head.class_branch.output.weight.unflatten(0, (-1, 3))
    for names, rows in ((("c", "b", "a"), [2, 1, 0]), (("a", "c"), [0, 2])):
        other = make_model(len(names))
        load_weights(other, path, names)
        assert torch.equal(other.head.class_branch.output.weight, by_class[:, rows].flatten(0, 1))
    assert not caplog.records
    other = make_model(3)
    load_weights(other, path, ("a", "b", "d"))
    assert torch.equal(other.head.box_branch.output.weight, trained.head.box_branch.output.weight)
    torch.testing.assert_close(other.head.class_branch.output.bias.detach().unique(), torch.tensor([-math.log(99)]))
    assert len(caplog.records) == 1


def test_no_weights_do_not_change_the_model():
    model = make_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    load_weights(model, None, ("a", "b", "c"))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_missing_files_and_unknown_names(tmp_path: Path):
    assert "absent.pth" in refusal(str(tmp_path / "absent.pth")).problem
    assert "absent.pth" in refusal(f"torchvision_retinanet:{tmp_path}/absent.pth").problem
    assert str(tmp_path) in refusal(str(tmp_path) + "/").problem
    error = refusal("IMAGENET_V1")
    assert "model.weights" in error.problem and "IMAGENET1K_V1" in error.remedy


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bytes_that_are_no_checkpoint(tmp_path: Path):
    good = Path(file_of({"conv1.weight": torch.ones(3)}, tmp_path)).read_bytes()
    legacy = tmp_path / "legacy.pth"
    torch.save({"conv1.weight": torch.ones(3)}, legacy, _use_new_zipfile_serialization=False)
    chance = random.Random(0)
    contents = [b"", b"weights", good[: len(good) // 2], *(legacy.read_bytes()[:n] for n in range(1, 60, 3))]
    contents += [chance.randbytes(chance.randint(1, 100)) for _ in range(100)]
    contents += [
        b"\x80\x02" + chance.randbytes(chance.randint(1, 100)) for _ in range(100)
    ]  # the first bytes of a pickle
    model = make_model()
    for data in contents:
        (tmp_path / "broken.pth").write_bytes(data)
        with pytest.raises(UserError, match=r"broken\.pth"):
            load_weights(model, str(tmp_path / "broken.pth"), ("a", "b", "c"))


class Marker:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("prefix", ["", "torchvision_retinanet:"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_file_is_refused_and_never_runs(tmp_path: Path, writer: str, prefix: str):
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    contents = {"conv1.weight": torch.ones(3), "x": Marker(marker)}
    if writer == "torch":
        torch.save(contents, path)
    else:
        path.write_bytes(pickle.dumps(contents, protocol=2))
    assert "evil.pth" in refusal(f"{prefix}{path}").problem
    assert not marker.exists()
    torch.load(path, weights_only=False) if writer == "torch" else pickle.loads(path.read_bytes())
    assert marker.exists()  # the code in the file works


def test_weights_of_something_else(tmp_path: Path):
    resnet18 = torchvision.models.resnet18(weights=None).state_dict()
    path = file_of(resnet18, tmp_path)
    assert "resnet34" in refusal(path, "backbone.type=resnet34").problem
    assert refusal(f"torchvision_retinanet:{path}").remedy == f"set model.weights={path}"
    assert "bn1.bias" in refusal(file_of({"conv1.weight": resnet18["conv1.weight"]}, tmp_path)).problem
    assert "resnet18" in refusal(file_of(resnet18 | {"conv1.weight": torch.ones(3)}, tmp_path)).problem
    assert "list" in refusal(file_of([torch.ones(3)], tmp_path)).problem
    width = {"model": make_model(3, "width=16").state_dict(), "class_names": ["a", "b", "c"], "config": "model: {}"}
    problem = refusal(file_of(width, tmp_path)).problem
    assert "(36, 16, 3, 3)" in problem and "(36, 32, 3, 3)" in problem


@pytest.mark.parametrize(
    "state",
    [
        {1: torch.ones(3)},
        {"head.classification_head.cls_logits.weight": 1, "head.classification_head.cls_logits.bias": 2},
    ],
)
@pytest.mark.parametrize("prefix", ["", "torchvision_retinanet:"])
def test_containers_that_are_no_state_dict(tmp_path: Path, state: dict, prefix: str):
    assert "weights.pth" in refusal(prefix + file_of(state, tmp_path)).problem
