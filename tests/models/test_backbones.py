"""The maps of the backbones, also of timm's models, and weights from files."""

from pathlib import Path

import pytest
import timm
import torch
from runs import first_batches
from safetensors.torch import save_file
from tiny import tiny_config, tiny_trainer

from detector.build import build_model, outline
from detector.core.errors import UserError
from detector.models.backbones import BACKBONES

RESNETS = (
    "resnet18",
    "resnet50",
)  # with basic blocks, with bottlenecks; tests/models/test_detector.py tests the others
# the first has batch norms and unusual names of stages, the second has no map of stride 2
TIMM = ("mobilenetv4_conv_small_050", "convnext_atto")


def timm_backbone(name: str, **strides: int):
    known = {"min_stride": 8, "max_stride": 32} | strides
    return BACKBONES.resolve({"type": "timm", "name": name}).build(known)


@pytest.mark.parametrize("spec", [*RESNETS, *({"type": "timm", "name": name} for name in TIMM)], ids=str)
@torch.no_grad()
def test_maps_have_the_strides_and_channels_of_the_backbone(spec: str | dict):
    for known, strides in (
        ({"min_stride": 8, "max_stride": 128}, (8, 16, 32)),
        ({"min_stride": 4, "max_stride": 8}, (4, 8)),
    ):
        backbone = BACKBONES.resolve(spec).build(known).eval()
        assert backbone.strides == strides
        maps = backbone(torch.zeros(1, 3, 64, 96))
        shapes = [(1, c, 64 // s, 96 // s) for c, s in zip(backbone.out_channels, strides, strict=True)]
        assert [tuple(x.shape) for x in maps] == shapes


@torch.no_grad()
@pytest.mark.parametrize("name", TIMM)
def test_a_file_of_a_timm_classifier_gives_its_maps(name: str, tmp_path: Path):
    torch.manual_seed(0)
    classifier = timm.create_model(name, num_classes=5).eval()
    images = torch.rand(1, 3, 64, 64)
    expected = classifier.forward_intermediates(images, intermediates_only=True)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    for file in ("classifier.pth", "classifier.safetensors"):
        backbone = timm_backbone(name).eval()
        backbone.load(tmp_path / file)
        for feature_map in backbone(images):
            assert any(feature_map.shape == x.shape and torch.allclose(feature_map, x, atol=1e-5) for x in expected)


def test_wrong_names_and_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    (tmp_path / "other.safetensors").write_bytes(b"no such thing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    backbone = timm_backbone(TIMM[0])
    cases = (
        (lambda: timm_backbone("convnext_atoo"), "'convnext_atto'"),
        (lambda: timm_backbone("convnext_atto.d3_in1k"), "'d2_in1k'"),
        (lambda: timm_backbone("convnext_atto", min_stride=64, max_stride=128), "4, 8, 16, 32"),
        (lambda: backbone.load(tmp_path / "other.pth"), "other.pth"),
        (lambda: backbone.load(tmp_path / "other.safetensors"), "other.safetensors"),
        (lambda: backbone.load(timm.list_pretrained(f"{TIMM[0]}.*")[0].partition(".")[2]), "huggingface.co/timm"),
        (lambda: backbone.load("imagenet"), "e3000_r224_in1k"),
        (lambda: timm_backbone("convnext_atto").load("in12k"), "'in12k'"),
    )
    for i, (call, fact) in enumerate(cases):
        with pytest.raises(UserError) as error:
            call()
            pytest.fail(f"case {i} raises no error")
        assert fact in str(error.value) and error.value.remedy


def test_pixels_are_normalized_as_the_weights_need_it(tmp_path: Path):
    """timm's EfficientNet-Lite0 was trained with a mean and a standard deviation of 0.5."""
    lite, resnet = (
        build_model(tiny_config(tmp_path, f"model.backbone={spec}"), 3)
        for spec in ("{type: timm, name: tf_efficientnet_lite0}", "{type: resnet18, norm: group}")
    )
    assert lite.mean.flatten().tolist() == lite.std.flatten().tolist() == [127.5] * 3
    assert resnet.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])


def test_a_pyramid_needs_a_map_for_each_of_its_levels(tmp_path: Path):
    config = tiny_config(tmp_path, "model.backbone={type: timm, name: vit_tiny_patch16_224}")
    with pytest.raises(UserError) as error:
        outline(config)
    assert error.value.problem.startswith("model.levels: ") and "model.backbone" in error.value.remedy


@pytest.mark.parametrize("name", TIMM)
def test_a_timm_backbone_trains(name: str, tmp_path: Path):
    trainer = tiny_trainer(
        tmp_path, f"model.backbone={{type: timm, name: {name}}}", "train.backbone_lr_scale=0.1", "train.ema_decay=0.9"
    )
    batches = first_batches(trainer, 2)
    predictions = trainer.model(batches[0].images)
    (predictions.logits.sum() + predictions.raw.sum()).backward()
    for key, parameter in trainer.model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    trainer.model.zero_grad()
    start = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    for batch in batches:
        measured = trainer.step([batch])
        assert measured["loss"].isfinite() and not measured["refused"]
    changed = {key for key, value in trainer.model.state_dict().items() if not torch.equal(value, start[key])}
    assert any(key.startswith("backbone.") for key in changed)


def test_an_outline_draws_no_random_number(tmp_path: Path):
    before = torch.get_rng_state()
    assert outline(tiny_config(tmp_path, "model.width=24")).size_divisor == 16
    assert torch.equal(before, torch.get_rng_state())
