"""The anatomy of an evaluation made by hand, against numbers computed by hand."""

import math
import re

import pytest
import torch

from detector.core.files import read_json, write_json
from detector.evaluation.anatomy import (
    at_border,
    background_per_foreground,
    calibration,
    class_curves,
    confusion,
    make_anatomy,
    make_curves,
)
from detector.evaluation.anatomy_result import Anatomy, AtBorder, OperatingPoint
from detector.evaluation.anatomy_text import describe
from detector.evaluation.anchor_scores import AnchorRanking
from detector.evaluation.coco import coco_metrics
from detector.evaluation.tide import match

A, B = 5, 2  # category ids
CATEGORIES = [{"id": A, "name": "a"}, {"id": B, "name": "b"}]
BOX, FAR = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 10.0, 10.0]
OBJECTS = [(1, A, BOX, 0), (1, B, FAR, 0), (2, A, BOX, 0), (3, A, BOX, 1)]
GROUND_TRUTH = {
    "images": [{"id": i, "width": 100, "height": 100} for i in (1, 2, 3)],
    "categories": CATEGORIES,
    "annotations": [
        {"id": i + 1, "image_id": image, "category_id": category, "bbox": box, "area": 100.0, "iscrowd": crowd}
        for i, (image, category, box, crowd) in enumerate(
            [(1, A, BOX, 0), (1, B, FAR, 0), (2, A, BOX, 0), (3, A, BOX, 1)]
        )
    ],
}
DETECTIONS = [
    {"image_id": image, "category_id": category, "bbox": box, "score": score}
    for image, category, box, score in [
        (1, A, BOX, 0.95),  # correct
        (1, A, FAR, 0.85),  # b detected as a
        (1, A, BOX, 0.65),  # a duplicate
        (2, B, FAR, 0.55),  # background
        (3, A, BOX, 0.45),  # in a crowd: not counted
        (2, A, BOX, 0.25),  # correct
    ]
]


def test_curves_over_the_threshold():
    curves = make_curves(match(GROUND_TRUTH, DETECTIONS), ["a", "b"])
    by_threshold = {t: i for i, t in enumerate(curves.thresholds)}
    for threshold, num_correct, num_detections in [(0.0, 2, 5), (0.3, 1, 4), (0.6, 1, 3), (0.9, 1, 1)]:
        i = by_threshold[threshold]
        assert curves.precision[i] == pytest.approx(num_correct / num_detections)
        assert curves.recall[i] == pytest.approx(num_correct / 3)
        assert curves.f1[i] == pytest.approx(2 * num_correct / (num_detections + 3))
    assert math.isnan(curves.precision[by_threshold[0.97]])
    # F1 is 0.5 with the best detection alone (2 / 4) and with all (4 / 8): the lower threshold is returned
    assert curves.best_f1 == OperatingPoint(score=0.0, precision=0.4, recall=2 / 3, f1=0.5)


def test_confusion_with_background():
    # rows and columns are a, b, background
    assert confusion(GROUND_TRUTH, DETECTIONS, 0.0).tolist() == [[2, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert confusion(GROUND_TRUTH, DETECTIONS, 0.9).tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]
    assert confusion(GROUND_TRUTH, [], 0.0).tolist() == [[0, 0, 2], [0, 0, 1], [0, 0, 0]]


def test_calibration():
    result = calibration(match(GROUND_TRUTH, DETECTIONS))
    # each bin has one detection: |1 - 0.95|, |0 - 0.85|, |0 - 0.65|, |0 - 0.55|, |1 - 0.25|
    assert result.ece == pytest.approx((0.05 + 0.85 + 0.65 + 0.55 + 0.75) / 5)
    assert [b.count for b in result.bins] == [1] * 5
    assert math.isnan(calibration(match(GROUND_TRUTH, [])).ece)


def test_boxes_at_the_border():
    """BOX touches the border on two sides, FAR does not. A hundredth of 100 pixels is 1 pixel."""
    matches = match(GROUND_TRUTH, DETECTIONS)
    assert at_border(GROUND_TRUTH, DETECTIONS, matches, 0.0) == AtBorder(objects=(2, 3), wrong=(1, 3))
    assert at_border(GROUND_TRUTH, DETECTIONS, matches, 0.6) == AtBorder(objects=(2, 3), wrong=(1, 2))
    assert at_border(GROUND_TRUTH, [], match(GROUND_TRUTH, []), 0.0) == AtBorder(objects=(2, 3), wrong=(0, 0))
    for box, touches in (([1, 50, 9, 9], 1), ([1.5, 50, 9, 9], 0), ([50, 89, 9, 10], 1), ([50, 89, 9, 9.5], 0)):
        wrong = [{"image_id": 2, "category_id": B, "bbox": box, "score": 0.5}]
        assert at_border(GROUND_TRUTH, wrong, match(GROUND_TRUTH, wrong), 0.0).wrong == (touches, 1)


def test_class_curves_are_cocos():
    curves = class_curves(match(GROUND_TRUTH, DETECTIONS), ["a", "b"])
    metrics = coco_metrics(GROUND_TRUTH, DETECTIONS)
    for name in ("a", "b"):
        mean = sum(curves[name].precision) / 101
        assert mean == pytest.approx(metrics.per_class[name].AP50)
    assert curves["a"].precision[:51] == [1.0] * 51  # recall to 1 / 2 at the first detection


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    metrics = coco_metrics(GROUND_TRUTH, DETECTIONS)
    ratios = {1: 30.0, 2: 10.0, 3: math.inf}
    settings = {"backend": "hotcoco", "max_detections": 100}
    ranking = AnchorRanking(roc_auc=0.9, average_precision=math.nan)
    return make_anatomy(GROUND_TRUTH, DETECTIONS, metrics, ratios, ranking, **settings)


def test_parts_by_imbalance_are_separate_evaluations(anatomy):
    assert [(p.name, p.images, p.background_per_foreground) for p in anatomy.by_imbalance] == [
        ("lowest third", 1, (10.0, 10.0)),
        ("middle third", 1, (30.0, 30.0)),
    ]
    first = {**GROUND_TRUTH, "images": [{"id": 2, "width": 100, "height": 100}]}
    first["annotations"] = [annotation for annotation in GROUND_TRUTH["annotations"] if annotation["image_id"] == 2]
    expected = coco_metrics(first, [detection for detection in DETECTIONS if detection["image_id"] == 2])
    assert expected["AP"] == anatomy.by_imbalance[0].AP


def test_the_description_has_the_main_figures(anatomy):
    lines = [set(re.findall(r"\d+(?:\.\d+)?%?", line)) for line in describe(anatomy).splitlines()]
    best = anatomy.curves.best_f1
    for figures in (
        {f"{best.f1:.3f}", f"{best.score:.2f}", f"{best.precision:.3f}", f"{best.recall:.3f}"},
        {f"{anatomy.calibration.ece:.3f}"},
        {"67%", "33%"},  # of the objects and of the wrong detections, at the border
        {"0.9000"},  # ROC-AUC of the anchors
        {"30", f"{anatomy.by_imbalance[1].AP:.3f}"},  # background per foreground
    ):
        assert any(figures <= line for line in lines), figures
    assert describe(anatomy).count("(1)") == 3  # b as a, background as a, background as b


def test_an_anatomy_is_read_from_its_file(anatomy, tmp_path):
    write_json(tmp_path / "anatomy.json", anatomy.to_json())
    values = read_json(tmp_path / "anatomy.json")
    assert repr(Anatomy.from_json(values)) == repr(anatomy)  # repr, because NaN is not equal to NaN
    assert values["anchor_level"] == {"roc_auc": 0.9, "average_precision": None}
    del values["at_border"], values["anchor_level"]  # as older versions wrote the file
    older = Anatomy.from_json(values)
    assert older.at_border is None and describe(older)


def test_the_ratio_of_each_image_counts_the_anchors_of_the_image():
    labels = torch.tensor([[0, 2, 2, -1], [2, 2, 2, 2], [1, 0, 2, -1]])
    assert background_per_foreground(labels, 2) == [2.0, math.inf, 0.5]
