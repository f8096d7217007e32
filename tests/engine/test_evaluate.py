import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detector.build import build_dataset, build_evaluation
from detector.config import config_from_text
from detector.core.errors import UserError
from detector.core.structures import Predictions, Priors
from detector.data.checks.findings import KINDS
from detector.data.images import write_image
from detector.evaluation.metrics import Metrics
from detector.geometry.coders import DeltaCoder

DELTAS = DeltaCoder()

# the (width, height) of the file, and after the resize to short_side 64 and long_side 128, calculated by hand
SIZES = [
    ((97, 61), (102, 64)),
    ((50, 133), (48, 128)),
    ((201, 88), (128, 56)),
    ((64, 64), (64, 64)),
    ((1, 7), (18, 128)),
]
BOXES = {  # image: (category id, x, y, w, h); boxes of a class do not overlap
    0: [(9, 0, 0, 40.5, 30.25), (9, 50.3, 20.7, 46.7, 40.3), (4, 3.3, 35.5, 20.1, 20.2)],
    1: [(4, 10.1, 100.9, 39.9, 32.1), (7, 0.5, 1.5, 3.25, 90)],
    2: [(7, 100.01, 40.02, 100.99, 47.98), (9, 5, 5, 60, 6.5), (4, 6, 5.5, 60, 6.5)],
    3: [],
    4: [(9, 0.25, 0.5, 0.5, 6)],
}
GREY_STEP = 40  # image i has the constant grey value 40 i, which a resize does not change


class Oracle(nn.Module):
    """Recognizes each image by its grey value, and predicts its annotations, `shift` pixels to the right."""

    size_divisor = 16

    def __init__(self, labels: dict[int, int], shift: float = 0.0):
        super().__init__()
        self.labels = labels
        self.shift = shift
        self.register_buffer("anchors", torch.tensor([[x, x / 2, x + 24, x / 2 + 31] for x in (0.0, 16, 33, 60, 70)]))
        self.modes: list[bool] = []

    def forward(self, images: torch.Tensor) -> Predictions:
        self.modes.append(self.training)
        num_anchors = len(self.anchors)
        logits = torch.full((len(images), num_anchors, len(self.labels)), -15.0)
        deltas = torch.zeros(len(images), num_anchors, 4)
        for b, image in enumerate(images):
            index = int(image[0, 0, 0]) // GREY_STEP
            (width, height), (new_width, new_height) = SIZES[index]
            for a, (category, x, y, w, h) in enumerate(BOXES[index]):
                sx, sy = new_width / width, new_height / height
                ax1, ay1, ax2, ay2 = self.anchors[a].tolist()
                deltas[b, a, 0] = ((x + w / 2) * sx + self.shift - (ax1 + ax2) / 2) / (ax2 - ax1)
                deltas[b, a, 1] = ((y + h / 2) * sy - (ay1 + ay2) / 2) / (ay2 - ay1)
                deltas[b, a, 2] = np.log(w * sx / (ax2 - ax1))
                deltas[b, a, 3] = np.log(h * sy / (ay2 - ay1))
                logits[b, a, self.labels[category]] = 3.0 - a  # different scores, in the order of the annotations
        return Predictions(logits, deltas, Priors(self.anchors, (2, num_anchors - 2)), DELTAS)


@pytest.fixture
def config(tmp_path: Path):
    images, annotations = [], []
    for i, ((width, height), _) in enumerate(SIZES):
        write_image(tmp_path / f"{i}.png", np.full((height, width, 3), GREY_STEP * i, dtype=np.uint8))
        images.append({"id": 100 - i, "file_name": f"{i}.png", "width": width, "height": height})
        for category, *box in BOXES[i]:
            annotations.append(
                {"id": len(annotations), "image_id": 100 - i, "category_id": category, "bbox": box, "iscrowd": 0}
            )
    categories = [{"id": i, "name": name} for i, name in ((9, "nine"), (4, "four"), (7, "seven"))]
    (tmp_path / "a.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    section = "{type: coco, images: ., annotations: a.json}"
    return config_from_text(
        f"data: {{root: {tmp_path}, train: {section}, val: {section}, num_workers: 0, "
        "short_side: 64, long_side: 128}\n"
        "model: {levels: [3, 4]}\n"
        "evaluation: {batch_size: 2}\n",
        "config",
    )


def evaluate(config, model: nn.Module) -> tuple[Metrics, list[dict]]:
    dataset = build_dataset(config, "val")
    return build_evaluation(config, dataset, torch.device("cpu"), torch.float32)(model)


def test_the_pipeline_returns_the_annotations_unchanged(config):
    model = Oracle({4: 0, 7: 1, 9: 2})
    model.train()
    metrics, detections = evaluate(config, model)
    assert metrics["AP"] >= 0.9999 and metrics["AR100"] >= 0.9999
    assert all(values.AP >= 0.9999 for values in metrics.per_class.values())
    assert set(metrics.per_class) == {"four", "seven", "nine"}
    assert len(detections) == sum(map(len, BOXES.values()))
    for i, boxes in BOXES.items():
        of_image = sorted((d for d in detections if d["image_id"] == 100 - i), key=lambda d: -d["score"])
        assert [d["category_id"] for d in of_image] == [category for category, *_ in boxes]
        for detection, (_, *box) in zip(of_image, boxes, strict=True):
            np.testing.assert_allclose(detection["bbox"], box, atol=1e-3)
    assert model.modes == [False] * 3 and model.training  # the mode is restored


def test_shifted_boxes_and_wrong_classes_have_lower_metrics(config):
    """The negative control of the test above."""
    metrics, _ = evaluate(config, Oracle({4: 0, 7: 1, 9: 2}, shift=3))
    assert metrics["AP"] < 0.9
    metrics, _ = evaluate(config, Oracle({4: 1, 7: 0, 9: 2}))
    assert metrics.per_class["four"].AP < 0.5 and metrics.per_class["nine"].AP >= 0.9999


def test_a_model_without_detections_has_an_ap_of_0(config):
    model = Oracle({4: 0, 7: 1, 9: 2})
    strict = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"score_threshold": 0.99})})
    metrics, detections = evaluate(strict, model)
    assert metrics["AP"] == 0 and detections == []


class NaNOracle(Oracle):
    """Its logits are NaN."""

    def forward(self, images: torch.Tensor) -> Predictions:
        predictions = super().forward(images)
        return replace(predictions, logits=torch.full_like(predictions.logits, torch.nan))


@pytest.mark.parametrize("model", [NaNOracle({4: 0, 7: 1, 9: 2}), Oracle({4: 0, 7: 1, 9: 2}, shift=torch.nan)])
def test_a_model_that_predicts_nan_gets_one_line(config, model: Oracle):
    with pytest.raises(UserError, match=r"^image \d+: .*train\.precision=fp32") as error:
        evaluate(config, model)
    assert "\n" not in str(error.value)


def test_the_metrics_contain_their_settings(config):
    changed = {"score_threshold": 0.2, "max_detections": 50, "backend": "pycocotools"}
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update=changed)})
    metrics, _ = evaluate(config, Oracle({4: 0, 7: 1, 9: 2}))
    unchanged = {
        "nms_iou": 0.5,
        "candidates_per_level": 1000,
        "short_side": 64,
        "long_side": 128,
        "precision": "float32",
    }
    assert changed.items() | unchanged.items() <= metrics.settings.items()


@pytest.mark.parametrize(("num_crowds", "is_reported"), [(0, True), (1, False)])
def test_an_image_with_more_objects_than_detections_is_reported(
    config, tmp_path: Path, caplog: pytest.LogCaptureFixture, num_crowds: int, is_reported: bool
):
    """An image has twelve annotations, and max_detections is eleven. A crowd does not count as an object."""
    contents = json.loads((tmp_path / "a.json").read_text())
    boxes = [
        {"image_id": 97, "category_id": 4, "bbox": [5 * i, 5 * i, 5, 5], "iscrowd": int(i < num_crowds)}
        for i in range(12)
    ]
    contents["annotations"] += [{"id": 50 + i, **box} for i, box in enumerate(boxes)]
    (tmp_path / "a.json").write_text(json.dumps(contents))
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"max_detections": 11})})
    with caplog.at_level(logging.INFO):
        build_dataset(config, "val")
    finding = f"data.val: {KINDS['image_crowded'].what}: 1"
    assert any(finding in message for message in caplog.messages) == is_reported
