"""The imported models give the same outputs as the RetinaNets of detectron2 and mmdetection.

The published files are not available to the tests. References with random weights are written to files of the same
format.
"""

import logging
import pickle
import random
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
from retinanet_references import Detectron2RetinaNet, MMDetRetinaNet, Reference
from torch import Tensor
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from detector.build import build_dataset, build_model, build_trained_model
from detector.config import load_config
from detector.core.errors import UserError
from detector.data.images import read_image
from detector.geometry.coders import DeltaCoder
from detector.models.backbones.resnet import frozen_batch_norm_is_random
from detector.models.detector import DetectionModel
from detector.models.weights.imported import COCO_CLASSES as CLASSES
from detector.models.weights.load import IMPORTERS, load_weights

DELTAS = DeltaCoder()

ROUNDING = {"rtol": 0, "atol": 1e-3}  # fp32 through the 60 layers of R50; the logits have a standard deviation of 1.5
HEIGHT, WIDTH = 96, 160  # the strides of P6 and P7 do not divide them
KINDS = ("detectron2", "mmdet")
STRIDE_IN_1X1 = {"detectron2": "true", "mmdet": "false"}
QUICK = {  # small models
    kind: (f"backbone={{type: resnet18, stride_in_1x1: {value}}}", "width=32") for kind, value in STRIDE_IN_1X1.items()
}


def make_model(kind: str, num_classes: int = 80, *overrides: str) -> DetectionModel:
    """Build the model of the shipped config."""
    config = load_config(f"coco_{kind}", [f"model.{override}" for override in overrides])
    return build_model(config, num_classes).eval()


def loaded(kind: str, file: Path, names: tuple[str, ...] = CLASSES, *overrides: str) -> DetectionModel:
    model = make_model(kind, len(names), *overrides)
    load_weights(model, f"{kind}_retinanet:{file}", names)
    return model


def refusal(kind: str, file: Path, *overrides: str) -> UserError:
    with pytest.raises(UserError) as error:
        loaded(kind, file, CLASSES, *QUICK[kind], *overrides)
    assert file.name in error.value.problem and error.value.remedy and len(str(error.value)) < 400
    return error.value


@cache
def refusing_model() -> DetectionModel:
    """Return a model for files that are refused. A refusal does not change the model."""
    return make_model("mmdet", 80, "backbone=resnet18", "width=32")


def refusal_of(weights: str) -> UserError:
    with pytest.raises(UserError) as error:
        load_weights(refusing_model(), weights, CLASSES)
    return error.value


def as_arrays(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in state.items()}


def write_detectron2(path: Path, state: dict[str, Tensor]) -> Path:
    """Write a file like those of the model zoo: a pickle with the old module name numpy.core."""
    contents = {"model": as_arrays(state), "__author__": "Detectron2 Model Zoo"}
    data = pickle.dumps(contents, protocol=3)
    path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    return path


def write_mmdet(path: Path, state: dict[str, Tensor], **meta: Any) -> Path:
    meta = {"env_info": "sys.platform: linux", "config": "backbone=dict(type='ResNet', style='pytorch')", **meta}
    torch.save({"meta": meta, "state_dict": OrderedDict(state)}, path)
    return path


WRITERS = {"detectron2": write_detectron2, "mmdet": write_mmdet}
HEADS = {
    "detectron2": ("head.cls_score", "head.bbox_pred"),
    "mmdet": ("bbox_head.retina_cls", "bbox_head.retina_reg"),
}
SUFFIX = {"detectron2": "pkl", "mmdet": "pth"}


@dataclass
class Example:
    kind: str
    model: Reference
    state: dict[str, Tensor]
    file: Path
    images: Tensor
    outputs: tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module", params=KINDS)
def example(
    request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Example]:
    """A reference, two real images as (2, 3, H, W) uint8 RGB, and the outputs of the reference."""
    files = sorted((shared_data / "coco_tiny/val2017").glob("*.jpg"))[:2]
    pictures = [cv2.resize(read_image(file), (WIDTH, HEIGHT)) for file in files]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param == "detectron2":
            model = Detectron2RetinaNet(80)
            model.settle(images.float(), model.head.cls_score, model.head.bbox_pred)
            state = model.published_state()
        else:
            model = MMDetRetinaNet(80)
            model.settle(images.float(), model.bbox_head.retina_cls, model.bbox_head.retina_reg)
            state = model.state_dict()
    file = tmp_path_factory.mktemp("weights") / f"model.{SUFFIX[request.param]}"
    WRITERS[request.param](file, state)
    yield Example(request.param, model, state, file, images, model.predict(images.float()))
    file.unlink()


@pytest.fixture(scope="module")
def ours(example: Example) -> DetectionModel:
    return loaded(example.kind, example.file)


def ratio_major(kind: str, values: Tensor) -> Tensor:
    """Return values (..., A, n) in our order of the anchors of a cell: all sizes of a ratio, then the next ratio.

    detectron2 has all ratios of a size, then the next size.
    """
    if kind != "detectron2":
        return values
    return values.unflatten(-2, (-1, 3, 3)).transpose(-3, -2).flatten(-4, -2)


@torch.no_grad()
def test_logits_deltas_anchors_and_boxes_equal_the_reference(example: Example, ours: DetectionModel):
    logits, deltas, anchors, boxes = (ratio_major(example.kind, values) for values in example.outputs)
    assert (
        logits.std() > 1 and deltas.std() > 0.1 and (logits.sigmoid() > 0.05).any()
    )  # otherwise the test proves nothing
    predictions = ours(example.images)
    torch.testing.assert_close(predictions.logits, logits, **ROUNDING)
    torch.testing.assert_close(predictions.raw, deltas, **ROUNDING)
    torch.testing.assert_close(predictions.priors.boxes, anchors, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(predictions.boxes, boxes, rtol=1e-3, atol=0.02)  # coordinates up to 1,000 pixels


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "backbone"), [("detectron2", "resnet50"), ("mmdet", "resnet50")])
@torch.no_grad()
def test_in_float64_the_models_are_equal(kind: str, backbone: str, tmp_path: Path):
    """In fp32, rounding hides small errors, and it grows with the depth."""
    images = torch.randint(256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "detectron2":
            reference = Detectron2RetinaNet(3, backbone).double()
            outputs = reference.head.cls_score, reference.head.bbox_pred
        else:
            reference = MMDetRetinaNet(3, backbone).double()
            outputs = reference.bbox_head.retina_cls, reference.bbox_head.retina_reg
        reference.settle(images.double(), *outputs)
    state = reference.published_state() if kind == "detectron2" else reference.state_dict()
    torch.save({"model": state} if kind == "detectron2" else {"state_dict": state}, tmp_path / "model.pth")
    model = make_model(kind, 3, f"backbone={{type: {backbone}, stride_in_1x1: {STRIDE_IN_1X1[kind]}}}").double()
    load_weights(model, f"{kind}_retinanet:{tmp_path / 'model.pth'}", CLASSES[:3])
    logits, deltas, *_ = (ratio_major(kind, values) for values in reference.predict(images.double()))
    predictions = model(images)
    assert predictions.logits.dtype == torch.float64 and logits.std() > 1
    torch.testing.assert_close(predictions.logits, logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(predictions.raw, deltas, rtol=0, atol=1e-9)


def test_every_published_tensor_is_loaded(example: Example, ours: DetectionModel):
    """The backbone has 53 convolutions with 4 tensors of a norm, and mmdetection also counts the batches of each norm.

    The pyramid has 8 convolutions and the head has 10, each with a bias.
    """
    assert len(example.state) == 53 * (5 if example.kind == "detectron2" else 6) + 2 * (8 + 10)
    state = IMPORTERS[f"{example.kind}_retinanet"](example.file).state
    expected = ours.state_dict()
    assert {n for n in state if not n.endswith("num_batches_tracked")} == expected.keys()
    assert all(state[name].shape == value.shape for name, value in expected.items())


@pytest.mark.parametrize(
    ("kind", "structure"),
    [
        (
            "detectron2",
            {"backbone.stride_in_1x1": "true", "pyramid_top": "c5", "pyramid_relu": "true", "head.exact": "true"},
        ),
        (
            "mmdet",
            {"backbone.stride_in_1x1": "false", "pyramid_top": "c5", "pyramid_relu": "false", "head.exact": "true"},
        ),
    ],
)
def test_another_structure_is_refused_with_the_keys_to_set(kind: str, structure: dict[str, str], tmp_path: Path):
    structure = structure | {"head.exact": "true"}
    state = {f"{name}.{part}": torch.ones(1) for name in HEADS[kind] for part in ("weight", "bias")}
    p6 = {"detectron2": "backbone.top_block.p6.weight", "mmdet": "neck.fpn_convs.3.conv.weight"}[kind]
    state[p6] = torch.ones(256, 2048, 3, 3)
    file = WRITERS[kind](tmp_path / f"model.{SUFFIX[kind]}", state)
    remedy = refusal(kind, file).remedy  # the structure fits, but the shapes do not
    assert not any(f"model.{key}=" in remedy for key in structure)
    wrong = {key: {"true": "false", "false": "true", "c5": "p5"}[right] for key, right in structure.items()}
    for key, right in structure.items():
        assert refusal(kind, file, f"{key}={wrong[key]}").remedy == f"set model.{key}={right}"
    keys = " ".join(f"model.{key}={right}" for key, right in structure.items())
    assert refusal(kind, file, *(f"{key}={value}" for key, value in wrong.items())).remedy == f"set {keys}"


def test_channels_follow_the_class_names_or_are_not_loaded(
    example: Example, ours: DetectionModel, caplog: pytest.LogCaptureFixture
):
    some = ("toothbrush", "person", "tv")
    bias = ours.head.class_branch.output.bias.unflatten(0, (9, 80))
    few = loaded(example.kind, example.file, some)
    assert torch.equal(few.head.class_branch.output.bias.unflatten(0, (9, 3)), bias[:, [79, 0, 62]])
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        other = loaded(example.kind, example.file, ("person", "lamp"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and str(example.file) in record.getMessage()
    assert other.head.class_branch.output.bias.unique().numel() == 1
    assert torch.equal(other.head.box_branch.output.weight, ours.head.box_branch.output.weight)
    assert torch.equal(other.backbone.layer4[2].conv3.weight, ours.backbone.layer4[2].conv3.weight)


def test_the_shipped_config_builds_the_model_for_coco(example: Example, ours: DetectionModel, shared_data: Path):
    weights = f"model.weights={example.kind}_retinanet:{example.file}"
    config = load_config(f"coco_{example.kind}", [weights, f"data.root={shared_data / 'coco_tiny'}"])
    model = build_trained_model(config, build_dataset(config, "val"))
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in model.state_dict().items())


def test_coco_classes_are_in_the_order_of_their_ids():
    categories = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert len(CLASSES) == 80 and (CLASSES[0], CLASSES[11], CLASSES[79]) == ("person", "stop sign", "toothbrush")
    assert [categories.index(name) for name in CLASSES] == sorted(categories.index(name) for name in CLASSES)


def test_class_names_in_the_file(tmp_path: Path):
    state = {"bbox_head.retina_cls.bias": torch.zeros(18)}
    classes = ["cat", "lamp"]
    for meta in ({"CLASSES": tuple(classes)}, *({"dataset_meta": {key: classes}} for key in ("classes", "CLASSES"))):
        imported = IMPORTERS["mmdet_retinanet"](write_mmdet(tmp_path / "a.pth", state, **meta))
        assert imported.class_names == ("cat", "lamp")


# ---- the metadata of the files


@torch.no_grad()
def test_a_standard_deviation_in_the_file_changes_the_first_convolution(tmp_path: Path):
    """The same factor for the images and the first convolution does not change the outputs."""
    weight, std = torch.rand(64, 3, 7, 7), torch.tensor([57.375, 57.12, 58.395])
    plain = {"backbone.bottom_up.stem.conv1.weight": weight}
    scaled = {
        "backbone.bottom_up.stem.conv1.weight": weight * std.view(3, 1, 1),
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1),
        "pixel_std": std.view(3, 1, 1),
        "anchor_generator.cell_anchors.0": torch.zeros(9, 4),  # older releases wrote it
    }
    states = []
    for state in (plain, scaled):
        path = tmp_path / "model.pth"
        torch.save({"model": state, "iteration": 1}, path)
        states.append(IMPORTERS["detectron2_retinanet"](path).state)
    assert states[0].keys() == states[1].keys() == {"backbone.conv1.weight"}
    torch.testing.assert_close(states[1]["backbone.conv1.weight"], states[0]["backbone.conv1.weight"])


def test_images_of_other_channels_are_refused(tmp_path: Path):
    path = write_detectron2(tmp_path / "rgb.pkl", {"pixel_mean": torch.tensor([123.675, 116.28, 103.53])})
    assert "pixel_mean" in refusal("detectron2", path).problem
    path = write_detectron2(tmp_path / "grey.pkl", {"pixel_mean": torch.tensor([110.0]), "pixel_std": torch.ones(1)})
    assert "pixel_mean" in refusal("detectron2", path).problem


@pytest.mark.parametrize("key", ["config", "cfg"])
def test_caffe_style_is_refused(key: str, tmp_path: Path):
    path = tmp_path / "caffe.pth"
    torch.save({"meta": {key: "backbone=dict(norm_eval=True, style='caffe')"}, "state_dict": {}}, path)
    assert "pytorch style" in refusal("mmdet", path).remedy


def test_an_activation_in_the_file_is_required(tmp_path: Path):
    state = {"neck.fpn_convs.3.conv.weight": torch.zeros(256, 256, 3, 3)}
    path = write_mmdet(tmp_path / "a.pth", state, config="neck=dict(relu_before_extra_convs=True)")
    structure = IMPORTERS["mmdet_retinanet"](path).structure
    assert structure["pyramid_relu"] and structure["pyramid_top"] == "p5"


def test_norms_with_scales_and_shifts_alone_count_as_trained():
    """The files of detectron2's backbones have no means and variances."""
    backbone = make_model("detectron2").backbone
    assert frozen_batch_norm_is_random(backbone.state_dict())
    backbone.bn1.bias += 0.5
    assert not frozen_batch_norm_is_random(backbone.state_dict())


def test_the_remedy_has_all_keys_of_the_structure(example: Example):
    """The model differs from the file in several keys. The remedy has each key with the value of the file."""
    model = make_model(example.kind, 80, "backbone=resnet18", "width=32", "head.depth=1", "pyramid_top=p5")
    with pytest.raises(UserError) as error:
        load_weights(model, f"{example.kind}_retinanet:{example.file}", CLASSES)
    for setting in ("backbone.type=resnet50", "width=256", "head.depth=4", "pyramid_top=c5"):
        assert f"model.{setting}" in error.value.remedy


# ---- files


DETECTION = torchvision.models.detection
TORCHVISION_DETECTORS = {
    "FCOS": DETECTION.fcos_resnet50_fpn,
    "SSD": DETECTION.ssd300_vgg16,
    "Faster R-CNN": DETECTION.fasterrcnn_resnet50_fpn,
    "Mask R-CNN": DETECTION.maskrcnn_resnet50_fpn,
    "Keypoint R-CNN": DETECTION.keypointrcnn_resnet50_fpn,
}


@pytest.mark.parametrize("name", TORCHVISION_DETECTORS)
def test_another_detector_of_torchvision_is_named(name: str, tmp_path: Path):
    with torch.device("meta"):
        names = TORCHVISION_DETECTORS[name](weights=None, weights_backbone=None).state_dict().keys()
    path = tmp_path / "other.pth"
    state = {key: torch.zeros(1) for key in names}
    for contents in (
        state,
        {"model": state, "epoch": 3},
    ):  # the published form, and the form of torchvision's training script
        torch.save(contents, path)
        for kind in ("torchvision_retinanet:", "detectron2_retinanet:", "mmdet_retinanet:", ""):
            error = refusal_of(f"{kind}{path}")
            assert name in error.problem and error.remedy and "set model." not in error.remedy


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["backbone.bottom_up.stem.conv1.weight", "proposal_generator.rpn_head.conv.weight"], "detectron2"),
        (["head.cls_score.weight", "head.ctrness.weight"], "FCOS"),
        (["backbone.conv1.weight", "rpn_head.rpn_conv.weight", "roi_head.bbox_head.fc_cls.weight"], "mmdetection"),
        (["bbox_head.atss_cls.weight", "bbox_head.cls_convs.0.conv.weight"], "mmdetection"),
        (["bbox_head.retina_cls.weight", "bbox_head.cls_convs.0.gn.weight"], "mmdetection"),
        (["bbox_head.cls_convs.0.0.weight"], "mmdetection"),
        (["transformer.encoder.layers.0.linear1.weight", "class_embed.weight"], "DETR"),
        (["model.0.conv.weight", "model.22.cv2.0.0.conv.weight"], "Ultralytics"),
    ],
)
def test_other_detectors_are_named(keys: list[str], name: str, tmp_path: Path):
    torch.save({"state_dict": {key: torch.zeros(1) for key in keys}}, tmp_path / "other.pth")
    for kind in ("torchvision_retinanet:", "detectron2_retinanet:", "mmdet_retinanet:", ""):
        assert name in refusal_of(f"{kind}{tmp_path / 'other.pth'}").problem


def test_a_wrong_prefix_gets_the_right_prefix_as_remedy(example: Example, tmp_path: Path):
    right = f"{example.kind}_retinanet:"
    for kind in {"torchvision_retinanet:", "detectron2_retinanet:", "mmdet_retinanet:", ""} - {right}:
        assert refusal_of(f"{kind}{example.file}").remedy == f"set model.weights={right}{example.file}"
    resnet = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}, resnet)
    checkpoint = tmp_path / "best.pt"
    state = {"head.class_branch.output.weight": torch.zeros(1)}
    torch.save({"model": state, "config": "model: {}", "class_names": ["a"]}, checkpoint)
    for file in (resnet, checkpoint):
        assert refusal_of(f"mmdet_retinanet:{file}").remedy == f"set model.weights={file}"


@pytest.mark.parametrize("kind", KINDS)
def test_other_contents_are_refused(kind: str, tmp_path: Path):
    path = tmp_path / f"other.{SUFFIX[kind]}"
    write = WRITERS[kind]
    assert "head.class_branch.output.weight" in refusal(kind, write(path, {"conv1.weight": torch.ones(3)})).problem
    for shape in ((), (5,), (2, 2)):  # no shapes of a head
        state = {f"{name}.{part}": torch.ones(shape) for name in HEADS[kind] for part in ("weight", "bias")}
        refusal(kind, write(path, state))
    path.write_bytes(b"no weights")
    refusal(kind, path)
    path.write_bytes(pickle.dumps([1, 2], protocol=2))
    refusal(kind, path)
    path.unlink()
    refusal(kind, path)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_of_every_protocol(protocol: int, tmp_path: Path):
    path = tmp_path / "model.pkl"
    values = np.random.default_rng(0).random((256, 7)).astype(np.float32)
    contents = {"model": OrderedDict({"head.cls_score.bias": values}), "iteration": np.int64(3), "lr": np.float64(0.1)}
    path.write_bytes(pickle.dumps(contents, protocol=protocol))
    state = IMPORTERS["detectron2_retinanet"](path).state
    assert torch.equal(state["head.class_branch.output.bias"], torch.from_numpy(values))


class Marker:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


class Command(Marker):
    def __reduce__(self) -> tuple:
        return eval, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("evil", [Marker, Command])
@pytest.mark.parametrize("file", ["detectron2.pkl", "detectron2.pth", "mmdet.pth"])
def test_code_in_a_file_never_runs(file: str, evil: type[Marker], tmp_path: Path):
    marker, path = tmp_path / "marker", tmp_path / file
    contents = {"model": {"a": evil(marker)}, "state_dict": {"a": evil(marker)}, "meta": evil(marker)}
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(contents, protocol=2))
    else:
        torch.save(contents, path)
    refusal(path.stem, path)
    assert not marker.exists()
    pickle.loads(path.read_bytes()) if path.suffix == ".pkl" else torch.load(path, weights_only=False)
    assert marker.exists()  # the code in the file works


def test_only_latin1_is_encoded(tmp_path: Path):
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00punch\x86R.")
    assert isinstance(refusal("detectron2", path).__cause__, pickle.UnpicklingError)


def test_objects_of_unknown_classes_with_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """mmengine's checkpoints hold histories of a class of mmengine, with arrays and functions."""

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self._statistics = np.arange(3.0), {"mean": HistoryBuffer.mean, "last": np.float64(1)}

        def mean(self) -> float:
            raise NotImplementedError

    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = module.__name__, "HistoryBuffer.mean"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for package in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    path, before = tmp_path / "model.pth", torch.serialization.get_safe_globals()
    state = OrderedDict({"bbox_head.retina_cls.bias": torch.arange(720.0)})
    contents = {
        "meta": {"epoch": 12, "dataset_meta": {"CLASSES": CLASSES}, "seed": np.int64(3)},
        "message_hub": {"log_scalars": {"loss": HistoryBuffer()}},
        "state_dict": state,
    }
    torch.save(contents, path)
    for name in (module.__name__, "mmengine.logging", "mmengine"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):  # torch.load alone refuses the file
        torch.load(path, weights_only=True)
    imported = IMPORTERS["mmdet_retinanet"](path).state
    assert torch.equal(imported["head.class_branch.output.bias"], state["bbox_head.retina_cls.bias"])
    assert set(torch.serialization.get_safe_globals()) == set(before)  # the replacements are removed again


def test_torchs_older_format(tmp_path: Path):
    path = tmp_path / "model.pth"
    contents = {"meta": {"CLASSES": CLASSES}, "state_dict": OrderedDict({"bbox_head.retina_reg.bias": torch.ones(36)})}
    torch.save(contents, path, _use_new_zipfile_serialization=False)
    assert torch.equal(IMPORTERS["mmdet_retinanet"](path).state["head.box_branch.output.bias"], torch.ones(36))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", KINDS)
def test_broken_files(kind: str, tmp_path: Path):
    """Random changes break a file. It is refused, or it is read where the changes have no effect."""
    path = tmp_path / f"broken.{SUFFIX[kind]}"
    good = WRITERS[kind](path, {"head.cls_score.bias": torch.ones(3), "bbox_head.retina_reg.bias": torch.ones(2)})
    data, chance, refused = good.read_bytes(), random.Random(0), 0
    for _ in range(300):
        changed = bytearray(data[: chance.choice((len(data), chance.randrange(len(data))))])
        for _ in range(chance.randint(1, 4)):
            if changed:
                changed[chance.randrange(len(changed))] = chance.randrange(256)
        path.write_bytes(changed)
        try:
            IMPORTERS[f"{kind}_retinanet"](path)
        except UserError as error:
            refused += 1
            assert path.name in error.problem
    assert refused > 100
