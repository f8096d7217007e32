"""The imported FCOS of torchvision gives the same outputs, losses and detections as torchvision's model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from criteria import criterion_of_losses
from torch import Tensor, nn
from torchvision.models.detection import FCOS, fcos_resnet50_fpn
from torchvision_detections import by_class, torchvision_detections

from detector.build import build_model
from detector.config import load_config
from detector.core.errors import UserError
from detector.core.structures import GroundTruth, Predictions
from detector.geometry.assignment import ASSIGNERS
from detector.losses import BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.models.postprocess import postprocess
from detector.models.weights.load import load_weights

NAMES = tuple(f"class {i}" for i in range(5))
OUTPUTS = {
    "cls_logits": "classification_head.cls_logits",
    "bbox_ctrness": "regression_head.bbox_ctrness",
    "bbox_regression": "regression_head.bbox_reg",
}


@dataclass
class Example:
    """torchvision's model, its outputs on two padded images, and our predictions with its weights, in float64."""

    model: FCOS
    file: Path
    sizes: list[tuple[int, int]]
    outputs: dict[str, Tensor]
    anchors: list[Tensor]
    predictions: Predictions


@torch.no_grad()
def settle(model: FCOS, images: Tensor) -> None:
    """Set the parameters to values of a useful scale. All biases differ, so an exchanged parameter is detected."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    model.train().backbone(images)
    model.eval()
    for name, parameter in model.head.named_parameters():
        if parameter.dim() == 1:
            parameter.normal_(mean=float(name.endswith("weight")), std=0.2)
    outputs = model.head(list(model.backbone(images).values()))
    for key, layer in OUTPUTS.items():
        model.head.get_submodule(layer).weight.mul_(1.5 / outputs[key].std())
    model.head.regression_head.bbox_reg.bias.add_(2)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = fcos_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=5,
            min_size=128,
            max_size=192,
            score_thresh=0.05,
            detections_per_img=10_000,
        )
        images, _ = model.transform([torch.rand(3, 128, 192), torch.rand(3, 128, 160)])
        settle(model, images.tensors)
        file = tmp_path_factory.mktemp("weights") / "fcos.pth"
        torch.save(model.state_dict(), file)
        ours = build_model(load_config("coco_torchvision_fcos"), 5).eval()
        load_weights(ours, f"torchvision_fcos:{file}", NAMES)
        model, ours, pixels = model.double(), ours.double(), images.tensors.double()
        maps = list(model.backbone(pixels).values())
        outputs, anchors = model.head(maps), model.anchor_generator(images, maps)
        yield Example(model, file, images.image_sizes, outputs, anchors, ours(pixels))
    file.unlink()


def test_outputs_equal_torchvision(example: Example):
    predictions = example.predictions
    assert predictions.box_quality is not None
    ours = (predictions.logits, predictions.box_quality[..., None], predictions.raw)
    for value, key in zip(ours, OUTPUTS, strict=True):
        assert example.outputs[key].std() > 0.3
        torch.testing.assert_close(value.double(), example.outputs[key], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(predictions.priors.boxes.double(), example.anchors[0].double())


def test_losses_equal_torchvision(example: Example):
    boxes = torch.tensor([[[10.0, 8, 60, 50], [70, 20, 150, 90]], [[5, 30, 33, 70], [0, 0, 0, 0]]])
    labels = torch.tensor([[2, 0], [1, -1]])
    expected = example.model.compute_loss(
        [{"boxes": boxes[0], "labels": labels[0]}, {"boxes": boxes[1, :1], "labels": labels[1, :1]}],
        example.outputs,
        example.anchors,
        list(example.predictions.priors.level_sizes),
    )
    truth = GroundTruth(boxes, labels, torch.zeros(2, 2, dtype=torch.bool))
    targets = ASSIGNERS.build("centre", 5)(example.predictions.priors, truth)
    criterion = criterion_of_losses(
        CLASSIFICATION_LOSSES.build("focal"), BOX_LOSSES.build("giou"), 5, box_quality="centerness"
    )
    num_fg = criterion.count_foreground([targets])
    assert num_fg > 5
    terms = criterion(example.predictions, targets, num_fg).weighted
    for value, other in zip(terms.values(), expected.values(), strict=True):
        torch.testing.assert_close(value.double(), other.double(), rtol=1e-4, atol=1e-5)


def test_detections_equal_torchvision(example: Example):
    predictions, sizes = example.predictions, torch.tensor(example.sizes)
    limits = {"score_threshold": 0.05, "nms_iou": 0.6, "candidates_per_level": 1000, "max_detections": 100}
    results = postprocess(predictions, sizes, sizes, **limits)
    level_sizes = predictions.priors.level_sizes
    assert (predictions.ranking_logits[0, : level_sizes[0]].sigmoid() > 0.05).sum() > 1000
    expected = torchvision_detections(example.model, example.outputs, example.anchors, level_sizes, example.sizes, 100)
    for result, theirs in zip(results, expected, strict=True):
        assert len(result.labels) == 100
        torch.testing.assert_close(by_class(result), by_class(theirs), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("torchvision_fcos", "set model.head.conv_bias=true model.head.scales=false model.head.at_corners=true"),
        ("torchvision_retinanet", "set model.weights=torchvision_fcos:{file}"),
        ("detectron2_retinanet", "set model.weights=torchvision_fcos:{file}"),
    ],
)
def test_a_wrong_config_or_prefix_is_refused_with_the_keys_to_set(kind: str, remedy: str, example: Example):
    model = build_model(load_config("coco_fcos_r50_1x", ["model.weights=null"]), 5)
    with pytest.raises(UserError) as error:
        load_weights(model, f"{kind}:{example.file}", NAMES)
    assert str(example.file) in error.value.problem and "\n" not in str(error.value)
    assert error.value.remedy == remedy.format(file=example.file)
