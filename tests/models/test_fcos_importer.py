"""The imported FCOS of torchvision gives the same outputs, losses and detections as torchvision's model."""

from pathlib import Path

import pytest
import torch
from criteria import criterion_of_losses
from torch import nn
from torchvision.models.detection import fcos_resnet50_fpn

from detector.build import build_model
from detector.config import load_config
from detector.core.errors import UserError
from detector.core.structures import GroundTruth
from detector.geometry.assignment import ASSIGNERS
from detector.losses import BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.models.postprocess import postprocess
from detector.models.weights.load import load_weights

NAMES = tuple(f"class {i}" for i in range(5))
OVERRIDES = tuple(f"model.head.{key}" for key in ("conv_bias=true", "scales=false", "at_corners=true"))


@torch.no_grad()
def test_an_imported_fcos_equals_torchvision(tmp_path: Path):
    torch.manual_seed(0)
    theirs = fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=5, min_size=128, max_size=192, score_thresh=0.05
    )
    images, _ = theirs.transform([torch.rand(3, 128, 192), torch.rand(3, 128, 160)])
    for norm in theirs.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    theirs.train().backbone(images.tensors)
    theirs.eval()
    for name, parameter in theirs.head.named_parameters():
        if parameter.dim() == 1:
            parameter.normal_(mean=float(name.endswith("weight")), std=0.2)
    head = theirs.head
    maps = list(theirs.backbone(images.tensors).values())
    outputs = head(maps)
    for layer, key in (
        (head.classification_head.cls_logits, "cls_logits"),
        (head.regression_head.bbox_ctrness, "bbox_ctrness"),
        (head.regression_head.bbox_reg, "bbox_regression"),
    ):
        layer.weight.mul_(1.5 / outputs[key].std())
    head.regression_head.bbox_reg.bias.add_(2)
    file = tmp_path / "fcos.pth"
    torch.save(theirs.state_dict(), file)
    config = load_config("coco_fcos_r50_1x", OVERRIDES)
    ours = build_model(config, 5).eval()
    load_weights(ours, f"torchvision_fcos:{file}", NAMES)

    theirs, ours = theirs.double(), ours.double()
    pixels = images.tensors.double()
    maps = list(theirs.backbone(pixels).values())
    outputs, anchors = theirs.head(maps), theirs.anchor_generator(images, maps)
    predictions = ours(pixels)
    for value, key in (
        (predictions.logits, "cls_logits"),
        (predictions.raw, "bbox_regression"),
        (predictions.box_quality[..., None], "bbox_ctrness"),
    ):
        assert outputs[key].std() > 0.3
        torch.testing.assert_close(value.double(), outputs[key], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(predictions.priors.boxes.double(), anchors[0].double())

    boxes = torch.tensor([[[10.0, 8, 60, 50], [70, 20, 150, 90]], [[5, 30, 33, 70], [0, 0, 0, 0]]])
    labels = torch.tensor([[2, 0], [1, -1]])
    truth = GroundTruth(boxes, labels, torch.zeros(2, 2, dtype=torch.bool))
    targets = ASSIGNERS.build("centre", 5)(predictions.priors, truth)
    criterion = criterion_of_losses(
        CLASSIFICATION_LOSSES.build("focal"), BOX_LOSSES.build("giou"), 5, box_quality="centerness"
    )
    num_fg = criterion.count_foreground([targets])
    terms = criterion(predictions, targets, num_fg).weighted
    num_per_level = list(predictions.priors.level_sizes)
    expected = theirs.compute_loss(
        [{"boxes": boxes[0], "labels": labels[0]}, {"boxes": boxes[1, :1], "labels": labels[1, :1]}],
        outputs,
        anchors,
        num_per_level,
    )
    assert num_fg > 5
    for value, other in zip(terms.values(), expected.values(), strict=True):
        torch.testing.assert_close(value.double(), other.double(), rtol=1e-4, atol=1e-5)

    levels = {key: list(value.split(num_per_level, dim=1)) for key, value in outputs.items()}
    detections = theirs.postprocess_detections(
        levels, [list(a.split(num_per_level)) for a in anchors], images.image_sizes
    )
    sizes = torch.tensor(images.image_sizes)
    limits = {"score_threshold": 0.05, "nms_iou": 0.6, "candidates_per_level": 1000, "max_detections": 100}
    for result, other in zip(postprocess(predictions, sizes, sizes, **limits), detections, strict=True):
        assert len(result.labels) > 10
        torch.testing.assert_close(result.scores.double(), other["scores"].double(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(result.boxes.double(), other["boxes"].double(), rtol=1e-4, atol=1e-2)
        assert torch.equal(result.labels, other["labels"])

    with pytest.raises(UserError) as error:
        load_weights(ours, f"torchvision_retinanet:{file}", NAMES)
    assert error.value.remedy == f"set model.weights=torchvision_fcos:{file}"
