"""Exported files on real images, compared with their model."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config
from torch import Tensor

from detector.build import build_model
from detector.core.errors import UserError
from detector.core.structures import Batch, Detections, Predictions, Priors, Sample
from detector.data.images import find_images, read_image
from detector.data.pipeline.batches import collate
from detector.data.pipeline.buckets import round_up
from detector.data.pipeline.transforms import resize, target_size
from detector.deploy.export import export
from detector.deploy.export.graphs import suppress
from detector.deploy.export.onnx import suppress_in_onnx
from detector.deploy.export.torch_export import METADATA
from detector.deploy.predict import Detector
from detector.geometry.coders import DistanceCoder
from detector.models.postprocess import postprocess

HEIGHT, WIDTH = 96, 128
NAMES, IDS = ("red", "white", "plätt\n"), (3, 1, 90)
RULE = {"score_threshold": 0.3, "nms_iou": 0.5, "candidates_per_level": 200, "max_detections": 30}
EXACT = {"rtol": 0, "atol": 0}
ROUNDING = {
    "rtol": 1e-5,
    "atol": 1e-4,
}  # the order of fp32 sums differs in 20 layers; logits have a standard deviation of 1


def make_detector(folder: Path, *overrides: str) -> Detector:
    """Return a detector with seeded weights and statistics, whose logits and boxes differ between the anchors."""
    rule = [f"evaluation.{key}={value}" for key, value in RULE.items()]
    config = tiny_config(folder, "model.head.prior=0.3", "model.levels=[3,4]", *rule, *overrides)
    torch.manual_seed(0)
    model = build_model(config, len(NAMES))
    images = torch.randint(256, (2, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    with torch.no_grad():
        predictions = model.eval()(images)
        head = model.head.one_to_one or model.head
        for branch, values, deviation in (
            (head.class_branch, predictions.logits, 1.0),
            (head.box_branch, predictions.raw, 0.35),
        ):
            branch.output.weight *= deviation / values.std()
    return Detector(model, config, NAMES, IDS)


@pytest.fixture(scope="module")
def batches(shared_data: Path) -> list[Batch]:
    """Return batches of 2, 1 and 3 real images, each resized to fit the canvas and padded to it."""
    paths = [find_images([str(shared_data / folder)])[:3] for folder in ("bccd/JPEGImages", "coco_tiny/val2017")]
    samples, canvas = [], {}
    for path in (path for pair in zip(*paths, strict=True) for path in pair):
        image = read_image(path)
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
        sample = Sample(image, *nothing, image_id=0, file_name=path.name, original_size=image.shape[:2])
        size = target_size(*image.shape[:2], HEIGHT, WIDTH)
        samples.append(resize(sample, *(min(size[0], HEIGHT), min(size[1], WIDTH))))
        canvas[tuple(round_up(samples[-1].image.shape[:2], 16).tolist())] = HEIGHT, WIDTH
    batches = [collate(part, 16, canvas) for part in (samples[:2], samples[2:3], samples[3:])]
    assert [batch.images.shape for batch in batches] == [(n, 3, HEIGHT, WIDTH) for n in (2, 1, 3)]
    assert any((batch.sizes < torch.tensor([HEIGHT, WIDTH])).any() for batch in batches)  # some images have padding
    return batches


@dataclass
class Exported:
    """An exported file and its detector."""

    detector: Detector
    path: Path

    @cached_property
    def run(self) -> Callable[..., tuple[Tensor, ...]]:
        if self.path.suffix == ".pt2":
            program = torch.export.load(self.path).module()
            return lambda *inputs: program(*(x.contiguous() for x in inputs))  # the exact results need this layout
        session = onnxruntime.InferenceSession(self.path)
        names = [argument.name for argument in session.get_inputs()]

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            outputs = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
            return tuple(map(torch.from_numpy, outputs))

        return run

    def metadata(self) -> dict:
        if self.path.suffix == ".pt2":
            files = {METADATA: ""}
            torch.export.load(self.path, extra_files=files)
            return json.loads(files[METADATA])
        return {p.key: json.loads(p.value) for p in onnx.load(self.path).metadata_props}


def make(folder: Path, suffix: str, nms: bool, *overrides: str) -> Exported:
    made = Exported(make_detector(folder, *overrides), folder / f"model{suffix}")
    assert export(made.detector, made.path, size=(HEIGHT, WIDTH), nms=nms) == (HEIGHT, WIDTH)
    assert [p.name for p in folder.glob("model*")] == [made.path.name]  # the export is a single file
    return made


FROZEN, GROUP, BATCH = (f"model.backbone.norm={norm}" for norm in ("frozen", "group", "batch"))
POINTS = "model.head={type: points, depth: 1, prior: 0.3, activation: exp}"  # with distances and a quality
DISTRIBUTIONS = "model.head={type: points, depth: 1, prior: 0.3, reg_max: 7, quality: null, towers: shared}"
ONE_TO_ONE = "model.head={type: points, depth: 1, prior: 0.3, activation: exp, one_to_one: true}"
LITE0 = "model.backbone={type: timm, name: tf_efficientnet_lite0}"  # its padding depends on the image size
CONVNEXT = "model.backbone={type: timm, name: convnext_atto}"


@pytest.fixture(
    scope="module",
    params=[
        *((".onnx", override) for override in (FROZEN, GROUP, POINTS, LITE0, CONVNEXT)),
        *((".pt2", override) for override in (BATCH, DISTRIBUTIONS)),
    ],
    ids=" ".join,
)
def raw(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    suffix, override = request.param
    return make(tmp_path_factory.mktemp("raw"), suffix, False, override)


@pytest.fixture(
    scope="module",
    params=[
        *((".onnx", BATCH), (".pt2", FROZEN), (".pt2", POINTS), (".onnx", DISTRIBUTIONS)),
        *((".onnx", ONE_TO_ONE), (".pt2", ONE_TO_ONE)),
    ],
    ids=" ".join,
)
def detections(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    suffix, override = request.param
    return make(tmp_path_factory.mktemp("detections"), suffix, True, override)


@pytest.mark.slow
def test_raw_files_have_the_outputs_of_the_model(raw: Exported, batches: list[Batch]):
    close = EXACT if raw.path.suffix == ".pt2" else ROUNDING
    for batch in batches:
        with torch.no_grad():
            predictions = raw.detector.model(batch.images)
        assert predictions.logits.std() > 0.3 and predictions.raw.std() > 0.1
        logits, deltas, anchors = raw.run(batch.images)
        torch.testing.assert_close(logits, predictions.ranking_logits, **close)
        torch.testing.assert_close(deltas, predictions.raw, **close)
        assert torch.equal(anchors, predictions.priors.boxes)
    assert sum(raw.metadata()["level_sizes"]) == len(anchors)


def expected_detections(detector: Detector, batch: Batch, sizes: Tensor) -> list[Detections]:
    with torch.no_grad():
        predictions = detector.model(batch.images)
    return postprocess(predictions, sizes, sizes, **RULE)


@pytest.mark.slow
def test_files_with_post_processing_have_the_detections_of_the_model(detections: Exported, batches: list[Batch]):
    exact = detections.path.suffix == ".pt2"
    counts = []
    # with a quarter of the image sizes, many boxes have no area and are not detected
    for batch, sizes in [(b, b.sizes) for b in batches] + [(b, b.sizes // 4) for b in batches]:
        boxes, scores, labels = detections.run(batch.images, sizes)
        assert boxes.shape == (len(batch.images), 30, 4)
        for i, expected in enumerate(expected_detections(detections.detector, batch, sizes)):
            n = len(expected.labels)
            counts.append(n)
            assert torch.equal(labels[i, :n], expected.labels) and (labels[i, n:] == -1).all()
            torch.testing.assert_close(scores[i, :n], expected.scores, **ROUNDING)
            # in pixels: boxes are up to 128 wide, and their deltas have errors of 1e-5
            close = EXACT if exact else {"rtol": 0, "atol": 1e-2}
            torch.testing.assert_close(boxes[i, :n], expected.boxes, **close)
            assert not scores[i, n:].any() and not boxes[i, n:].any()
    assert max(counts) == 30 and min(counts) > 10  # some images reach the limit


@pytest.mark.slow
def test_the_operators_of_non_maximum_suppression(detections: Exported):
    if detections.path.suffix == ".pt2":
        operators = [str(node.target) for node in torch.export.load(detections.path).graph.nodes]
    else:
        operators = [node.op_type for node in onnx.load(detections.path).graph.node]
    suppressing = [name for name in operators if "nms" in name or "NonMaxSuppression" in name]
    assert len(suppressing) == (0 if detections.detector.model.nms_free else 1)


@pytest.mark.slow
def test_metadata(detections: Exported):
    has_nms = not detections.detector.model.nms_free
    has_reg_max = detections.detector.config.model.head.parameters.get("reg_max") is not None
    priors_per_cell = 6 if detections.detector.config.model.head.type == "anchors" else 1
    assert detections.metadata() == {
        "class_names": list(NAMES),
        "category_ids": list(IDS),
        "image_size": [HEIGHT, WIDTH],
        "level_sizes": [12 * 16 * priors_per_cell, 6 * 8 * priors_per_cell],
        "padding_colour": [124, 116, 104],
        "coder": "DistributionCoder" if has_reg_max else "DeltaCoder" if priors_per_cell > 1 else "DistanceCoder",
        "reg_max": 7 if has_reg_max else None,
        **RULE,
        "nms_iou": RULE["nms_iou"] if has_nms else None,
    }


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_no_detections_and_fewer_candidates_than_max_detections(
    suffix: str, tmp_path: Path, batches: list[Batch], capfd: pytest.CaptureFixture
):
    few = ("evaluation.score_threshold=1", "evaluation.candidates_per_level=7")
    made = make(tmp_path, suffix, True, *few)
    assert capfd.readouterr() == ("", "")
    for batch in batches:
        boxes, scores, labels = made.run(batch.images, batch.sizes)
        assert boxes.shape == (len(batch.images), 14, 4) and not boxes.any()
        assert not scores.any() and (labels == -1).all()


@pytest.mark.slow
def test_a_score_with_quality_is_accurate_in_onnx(tmp_path: Path):
    """The reference is in float64. ONNX has no accurate logsigmoid and no expm1."""

    class Ranking(torch.nn.Module):
        def forward(self, logits: Tensor, quality: Tensor) -> Tensor:
            priors, coder = Priors(torch.zeros(1, 4), (1,)), DistanceCoder()
            return Predictions(logits, logits, priors, coder, box_quality=quality).ranking_logits

    values = torch.cat([torch.linspace(-40, 40, 81), torch.linspace(-1, 1, 20)])
    logits, quality = (grid[..., None] for grid in torch.meshgrid(values, values, indexing="ij"))
    inputs = logits, quality[..., 0]
    log_score = (F.logsigmoid(logits.double()) + F.logsigmoid(quality.double())) / 2
    expected = (log_score - torch.log(-torch.expm1(log_score))).float()
    torch.testing.assert_close(Ranking()(*inputs), expected, rtol=1e-5, atol=1e-5)
    torch.onnx.export(Ranking().eval(), inputs, tmp_path / "ranking.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "ranking.onnx")
    names = [argument.name for argument in session.get_inputs()]
    (result,) = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
    torch.testing.assert_close(torch.from_numpy(result), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operation", [suppress, suppress_in_onnx])
def test_suppression_by_hand(operation: Callable):
    """Three images: two classes at one position, a chain of boxes with IoU 0.6, and scores not above the threshold."""
    chain = torch.tensor([[0.0, 0, 10, 10], [2.5, 0, 12.5, 10], [5, 0, 15, 10]])
    boxes = torch.stack((chain[[0, 0, 0]], chain, chain))
    scores = torch.tensor([[0.5, 0.7, 0.6], [0.9, 0.8, 0.7], [0.1, float("nan"), 0.3]])
    labels = torch.tensor([[0, 1, 0], [2, 2, 2], [0, 0, 0]])
    if operation is suppress:
        remaining = suppress(boxes, scores, labels, 3, 0.3, 0.5)
    else:  # onnxscript evaluates the operators with onnxruntime
        inputs = (boxes.numpy(), scores.numpy(), labels.numpy())
        remaining = torch.from_numpy(suppress_in_onnx(*inputs, 3, 0.3, 0.5).value)
    # the IoU of neighbors in the chain is 0.6, and the IoU of its ends is 1/3
    assert torch.equal(remaining, torch.tensor([[0, 0.7, 0.6], [0.9, 0, 0.7], [0, 0, 0]]))


@pytest.mark.parametrize(
    ("name", "size", "facts"),
    [
        ("a.tflite", None, ".onnx, .pt2"),
        ("a.onnx", (100, 128), "112 128"),
        ("a.onnx", (-5, 8), "16 16"),
    ],
)
def test_wrong_input_gets_one_line(name: str, size: tuple[int, int] | None, facts: str, tmp_path: Path):
    with pytest.raises(UserError) as error:
        export(make_detector(tmp_path), tmp_path / "out" / name, size=size)
    assert facts in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("views", ["evaluation.flip=true", "evaluation.scales=[1.0, 1.5]"])
def test_test_time_augmentation_cannot_be_exported(views: str, tmp_path: Path):
    with pytest.raises(UserError, match="^evaluation.flip, evaluation.scales"):
        export(make_detector(tmp_path, views), tmp_path / "out/a.pt2", nms=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(UserError, match=rf"\b{package}\b.*uv sync --extra onnx"):
        export(make_detector(tmp_path), tmp_path / "a.onnx")
