import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.build import build_census, build_dataset
from detector.config import load_config
from detector.core.errors import UserError
from detector.core.files import write_json
from detector.core.json_records import read_record
from detector.core.structures import GroundTruth, Priors
from detector.data.dataset import Record
from detector.data.pipeline.transforms import target_size
from detector.geometry.anchors import AnchorGrid
from detector.geometry.assignment import ATSSAssigner, CentreAssigner, MaxIoUAssigner
from detector.geometry.boxes import pairwise_iou
from detector.imbalance.anchor_counts import Setting, count_all, count_images, padded_size, scaled_boxes
from detector.imbalance.anchor_fit import best_iou, suggest
from detector.imbalance.balance import balancing_alpha, focal_gradient, initial_alpha
from detector.imbalance.census import take_census
from detector.imbalance.census_result import CENSUS, Census, Crowding, MatchCounts, RepeatFactors
from detector.imbalance.vocabulary import AnchorCounts

NUM_CLASSES = 3
ASSIGNERS = {
    "max_iou": MaxIoUAssigner(NUM_CLASSES),
    "no ignored background": MaxIoUAssigner(NUM_CLASSES, background=0.0),
    "atss": ATSSAssigner(NUM_CLASSES),
    "centre": CentreAssigner(NUM_CLASSES),
}


def make_setting(assigner, short_side: int = 96, exact: bool = False) -> Setting:
    return Setting(
        grid=AnchorGrid((8, 16, 32), [[12, 18], [26, 40], [55, 80]], [0.5, 1.0, 2.0], exact),
        assigner=assigner,
        target_size=partial(target_size, short_side=short_side, long_side=160),
        divisor=32,
        prior=0.01,
        num_classes=NUM_CLASSES,
    )


def make_record(seed: int) -> Record:
    """Return boxes of all sizes. Some are crowds, and two are equal. The image of seed 0 has no box."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(90, 200, 2).tolist()
    count = seed % 6
    corners = np.sort(rng.random((count, 2, 2)), axis=1) * (width, height)
    boxes = corners.reshape(-1, 4).astype(np.float32)
    boxes[:, 2:] += 3
    boxes[-1:] = boxes[:1]
    labels, crowd = rng.integers(NUM_CLASSES, size=count), rng.random(count) < 0.2
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return Record(Path(f"{seed}.jpg"), seed, width, height, boxes, labels, crowd, area)


@pytest.mark.parametrize("assigner", ASSIGNERS.values(), ids=ASSIGNERS)
def test_counts_are_those_of_the_assigner_on_every_anchor(assigner):
    setting = make_setting(assigner)
    records = [make_record(seed) for seed in range(30)]
    for record, count in zip(records, count_images(records, setting), strict=True):
        levels = setting.grid.of_image(padded_size(record, setting))
        anchors, sizes = torch.cat(levels), tuple(map(len, levels))
        boxes, labels = scaled_boxes(record, setting), torch.from_numpy(record.labels)
        crowd = torch.from_numpy(record.crowd)
        if len(boxes) == 0:
            assert count.anchors.tolist() == [[0, 0, size] for size in sizes]
            continue
        priors = Priors(anchors, sizes, tuple(setting.grid.strides))
        targets = assigner(priors, GroundTruth(boxes[None], labels[None], crowd[None]))
        for counts, part in zip(count.anchors.tolist(), targets.labels[0].split(sizes), strict=True):
            assert counts == [
                sum(0 <= label < NUM_CLASSES for label in part.tolist()),
                (part == -1).sum().item(),
                (part == NUM_CLASSES).sum().item(),
            ]
        assert count.by_class.tolist() == [(targets.labels[0] == k).sum().item() for k in range(NUM_CLASSES)]
        objects = [i for i in range(len(boxes)) if not crowd[i]]
        assert count.object_ignored.tolist() == ignored_by_hand(anchors, boxes, objects, targets.labels[0], assigner)
        iou = pairwise_iou(anchors, boxes)
        for i, number, best in zip(objects, count.object_anchors, count.object_iou, strict=True):
            is_of_object = (targets.labels[0] == labels[i]) & (targets.boxes[0] == boxes[i]).all(dim=1)
            assert number == is_of_object.sum()
            assert best == pytest.approx(iou[is_of_object, i].max().item() if is_of_object.any() else 0, abs=1e-6)


def ignored_by_hand(anchors, boxes, objects, labels, assigner) -> list[int]:
    """Count the ignored anchors that overlap each object most and with at least the assigner's `background` IoU."""
    counts = [0] * len(objects)
    if not objects or not isinstance(assigner, MaxIoUAssigner):
        return counts
    iou = pairwise_iou(anchors, boxes[objects])
    for iou_of_anchor, label in zip(iou.tolist(), labels.tolist(), strict=True):
        best = max(range(len(objects)), key=iou_of_anchor.__getitem__)
        if label == -1 and iou_of_anchor[best] > 0 and iou_of_anchor[best] >= assigner.background:
            counts[best] += 1
    return counts


@pytest.mark.slow
def test_processes_count_what_one_process_counts():
    setting = make_setting(ASSIGNERS["max_iou"])
    records = [make_record(seed) for seed in range(230)]
    for first, second in zip(count_all(records, setting, 2), count_images(records, setting), strict=True):
        for name in ("anchors", "by_class", "object_anchors", "object_iou", "object_ignored"):
            assert np.array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("exact", [False, True])
def test_the_nearest_anchor_of_each_shape_is_the_best(exact: bool):
    setting = replace(
        make_setting(ASSIGNERS["max_iou"], exact=exact), divisor=8
    )  # the sides are not multiples of P5's stride
    for record in (make_record(seed) for seed in range(1, 40)):
        boxes, size = scaled_boxes(record, setting), padded_size(record, setting)
        brute = pairwise_iou(torch.cat(setting.grid.of_image(size)), boxes)
        sizes = torch.tensor([size]).expand(len(boxes), 2)
        if len(boxes):
            torch.testing.assert_close(best_iou(boxes, sizes, setting.grid), brute.amax(dim=0))


def test_figures_by_hand():
    """A 64 x 64 image, a level, an anchor in each cell: 64 anchors of 16 x 16, centered at multiples of 8."""
    setting = Setting(
        grid=AnchorGrid((8,), [[16]], [1.0], exact=False), assigner=MaxIoUAssigner(2), divisor=8, prior=0.01,
        num_classes=2,
        target_size=partial(target_size, short_side=64, long_side=64),
    )  # fmt: skip
    assert setting.grid.base()[0].tolist() == [[-8, -8, 8, 8]]
    # an object equal to the anchor at (16, 16); the neighboring anchors have IoU 8 / 24 = 1/3, below 0.4
    exact = [8.0, 8, 24, 24]
    # an object of 16 x 8 centered on the anchor at (40, 40): IoU 0.5; the anchors left and right have 64 / 320 = 0.2
    half = [32.0, 36, 48, 44]
    # an object of 4 x 4 at (56, 8): IoU 1 / 16 with the four anchors that contain the object: low quality only
    tiny = [53.0, 9, 57, 13]
    boxes = np.array([exact, half, tiny], np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    full = Record(Path("a"), 1, 64, 64, boxes, np.array([0, 0, 1]), np.zeros(3, bool), areas)
    empty = Record(Path("b"), 2, 64, 64, boxes[:0], np.zeros(0, int), np.zeros(0, bool), areas[:0])
    census = take_census([full, empty], ["a", "b"], setting)

    iou = pairwise_iou(torch.cat(setting.grid.of_image((64, 64))), torch.tensor([tiny]))
    ties = int((iou == iou.max()).sum())
    assert census.anchors == AnchorCounts(foreground=2 + ties, ignored=0, background=128 - 2 - ties)
    assert census.ratio == (126 - ties) / (2 + ties)
    rows = [("a", 2, 1, 2), ("b", 1, 1, ties)]
    for row, expected in zip(census.by_class, rows, strict=True):
        assert (row.name, row.objects, row.images, row.foreground) == expected
    assert census.by_class[0].foreground_of_object.median == 1
    assert set(census.by_class[1].foreground_of_object.quantiles.values()) == {ties}
    assert census.by_level[0].foreground_of_image.quantiles["100"] == 2 + ties
    assert census.by_level[0].foreground_of_image.quantiles["0"] == 0
    assert census.matches == MatchCounts(objects=3, unmatched=0, low_quality=1)
    small = census.by_size[0]
    expected = {"name": "small", "objects": 3, "foreground": 2 + ties, "unmatched": 0, "low_quality": 1, "ignored": 0}
    assert {key: getattr(small, key) for key in expected} == expected
    assert small.foreground_of_object.quantiles["100"] == max(1, ties)
    assert census.by_image.images_without_objects == census.by_image.images_without_foreground == 1
    assert census.by_image.objects.median == 1.5
    assert census.max_iou.counts[19] == census.max_iou.counts[10] == census.max_iou.counts[1] == 1
    assert census.anchor_suggestion.recall.now == pytest.approx(2 / 3)
    remedies = census.remedies
    assert remedies.class_weights["inverse_frequency"] == pytest.approx([2 / 3, 4 / 3])
    half = RepeatFactors(classes=[1, 1], largest=1, epoch=1)  # each class is in half of the images
    assert remedies.repeat_factors["0.1"] == half
    text = json.dumps(census.to_json())  # plain numbers
    assert json.dumps(Census.from_json(json.loads(text)).to_json()) == text


def test_an_ignored_anchor_counts_for_its_object():
    """16 x 16 anchors at multiples of 8. An object of 8 x 14 inside an anchor has IoU 112 / 256 = 0.4375.

    This IoU is between background and foreground. The image also has a crowd of the object's class.
    """
    setting = Setting(
        grid=AnchorGrid((8,), [[16]], [1.0], exact=False), assigner=MaxIoUAssigner(2, low_quality=False),
        divisor=8, prior=0.01, num_classes=2, target_size=partial(target_size, short_side=64, long_side=64),
    )  # fmt: skip
    between = [12.0, 9, 20, 23]
    crowd = [40.0, 0, 64, 64]
    boxes = np.array([between, crowd], np.float32)
    record = Record(Path("a"), 1, 64, 64, boxes, np.array([1, 1]), np.array([False, True]), np.array([112.0, 1536]))
    census = take_census([record], ["a", "b"], setting)
    assert [row.ignored for row in census.by_class] == [0, 1]
    assert [row.ignored for row in census.by_size] == [1, 0, 0]
    assert census.anchors.ignored > 1, "the ignored anchors in the crowd belong to no object"


def make_records(*boxes_of_images: list[list[float]]) -> list[Record]:
    """Return records of 64 x 64 images with objects of class 0."""
    records = []
    for i, boxes in enumerate(boxes_of_images):
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        records.append(
            Record(Path(f"{i}"), i, 64, 64, boxes, np.zeros(len(boxes), int), np.zeros(len(boxes), bool), areas)
        )
    return records


def test_crowding_by_hand():
    """Two boxes with IoU 2/3, a box that touches neither, and a box alone in its image."""
    first, second, apart = [0, 0, 10, 10], [0, 2, 10, 12], [30, 30, 40, 40]
    records = make_records([first, second, apart], [first], [])
    census = take_census(records, ["a", "b", "c"], make_setting(ASSIGNERS["max_iou"]))
    assert census.crowding == Crowding(mean_max_iou=pytest.approx(2 * (8 / 12) / 4), objects_overlapping_half=2)


def test_repeat_factors_are_the_papers():
    """A class in the fraction f of the images has max(1, sqrt(t / f)). An image has the factor of its rarest class."""
    records = make_records(*[[[0, 0, 10, 10]]] * 100)
    records[7].labels[:] = 1  # f = 0.01
    factors = take_census(records, ["a", "b", "c"], make_setting(ASSIGNERS["max_iou"])).remedies.repeat_factors
    assert factors["0.1"].classes == pytest.approx([1, math.sqrt(10), math.nan], nan_ok=True)
    assert factors["0.1"].largest == pytest.approx(math.sqrt(10))
    assert factors["0.1"].epoch == pytest.approx((99 + math.sqrt(10)) / 100)
    assert factors["0.001"].classes == pytest.approx([1, 1, math.nan], nan_ok=True)


def test_the_recall_of_the_suggestion_equals_the_recall_of_all_its_anchors():
    records = [make_record(seed) for seed in range(40)]
    setting = make_setting(ASSIGNERS["max_iou"])
    fit = take_census(records, list("abc"), setting).anchor_suggestion
    suggested = replace(setting.grid, sizes=fit.sizes, ratios=fit.ratios)
    for which, grid in (("now", setting.grid), ("suggested", suggested)):
        best = []
        for record in records:
            boxes = scaled_boxes(record, setting)[torch.from_numpy(~record.crowd)]
            anchors = torch.cat(grid.of_image(padded_size(record, setting)))
            best += pairwise_iou(anchors, boxes).amax(dim=0).tolist()
        assert getattr(fit.recall, which) == pytest.approx(sum(iou >= 0.5 for iou in best) / len(best))
        assert getattr(fit.mean_max_iou, which) == pytest.approx(sum(best) / len(best), rel=1e-5)


def test_suggested_anchors_fit_boxes_of_known_shapes():
    rng = np.random.default_rng(0)
    size, ratio = rng.choice([10.0, 40.0, 90.0], 600), rng.choice([0.5, 2.0], 600)
    sides = np.stack((size / np.sqrt(ratio), size * np.sqrt(ratio)), axis=1)
    boxes = torch.from_numpy(np.concatenate((np.zeros((600, 2)), sides), axis=1)).float()
    assert suggest(boxes, 3, 1, 2) == ([[10.0], [40.0], [90.0]], [0.5, 2.0])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradient_is_the_gradient_of_focal_loss(gamma):
    x = torch.linspace(-9, 9, 50, dtype=torch.float64).requires_grad_()
    loss = (1 - x.sigmoid()) ** gamma * torch.nn.functional.softplus(-x)
    (slope,) = torch.autograd.grad(loss.sum(), x)
    gradient = focal_gradient((1 - x.sigmoid()).detach().numpy(), gamma)
    assert gradient == pytest.approx(slope.abs().numpy(), rel=1e-9)


def test_alphas_balance_the_gradients():
    assert balancing_alpha(1.0, 3.0) == 0.75 and balancing_alpha(0, 0) == 0.5
    # cross entropy at pi = 0.01: the gradient sums are 99 on 100 foreground and 99 on 9,900 background elements
    assert initial_alpha(100, 9_900, 0.0, 0.01) == pytest.approx(0.5)
    from detector.losses import CLASSIFICATION_LOSSES

    alpha = initial_alpha(20, 7_000, 2.0, 0.05)
    logits = torch.full((7_020, 1), float(np.log(0.05 / 0.95)), requires_grad=True)
    labels = torch.ones(7_020, dtype=torch.int64)
    labels[:20] = 0
    CLASSIFICATION_LOSSES.build("focal", alpha=alpha, gamma=2.0)(logits, labels, 20).backward()
    assert logits.grad[:20].abs().sum().item() == pytest.approx(logits.grad[20:].abs().sum().item(), rel=1e-4)


def test_real_annotations_with_crowds(shared_data):
    config = load_config("coco_focal_r50_1x.yaml", [f"data.root={shared_data / 'coco_tiny'}"])
    dataset = build_dataset(config, "train")
    census = build_census(config, dataset)
    counts = dataset.class_counts()
    assert census.num_objects == counts.sum() == sum(size.objects for size in census.by_size)
    assert [row.objects for row in census.by_class] == counts.tolist()
    assert sum(row.foreground for row in census.by_level) == sum(row.foreground for row in census.by_class)
    assert census.matches.unmatched + census.matches.low_quality <= census.matches.objects
    in_objects = [sum(row.ignored for row in rows) for rows in (census.by_class, census.by_size)]
    assert in_objects[0] == in_objects[1] > 0
    assert in_objects[0] < census.anchors.ignored, "some ignored anchors lie in crowds"
    assert 100 < census.ratio < 10_000


@pytest.mark.parametrize("assigner", ASSIGNERS.values(), ids=ASSIGNERS)
def test_a_census_without_images_or_objects(assigner):
    names, setting = ["a", "b", "c"], make_setting(assigner)
    nothing = take_census([], names, setting)
    empty = take_census([replace(make_record(0), width=96, height=96)] * 2, names, setting)
    assert nothing.num_images == 0 and nothing.anchors == AnchorCounts(foreground=0, ignored=0, background=0)
    assert empty.anchors == AnchorCounts(foreground=0, ignored=0, background=2 * 6 * (12**2 + 6**2 + 3**2))
    for census in (nothing, empty):
        assert math.isnan(census.ratio) and census.num_objects == 0
        assert [row.objects for row in census.by_class] == [0, 0, 0]
        assert [row.level for row in census.by_level] == ["P3", "P4", "P5"]


def test_a_box_that_touches_no_anchor_is_unmatched():
    """A local assigner gets only the anchors that touch a box. Here no anchor touches the box."""
    record = make_records([[10.0, 10, 10, 10]])[0]
    for assigner in ASSIGNERS.values():
        census = take_census([record], ["a", "b", "c"], make_setting(assigner))
        assert census.anchors.foreground == 0 and census.matches.unmatched == 1


def test_an_assigner_that_reads_predictions_is_refused():
    class ByPredictions(MaxIoUAssigner):
        needs_predictions = True

    with pytest.raises(UserError) as error:
        take_census(make_records([[10.0, 10, 30, 30]]), ["a", "b", "c"], make_setting(ByPredictions(NUM_CLASSES)))
    assert error.value.problem.startswith("assigner: ") and "assigner=max_iou" in error.value.remedy


def test_a_census_of_an_older_version_is_read_or_refused(tmp_path: Path):
    file = tmp_path / "census.json"
    write_json(file, take_census([], ["a", "b", "c"], make_setting(ASSIGNERS["max_iou"])).to_json())
    values = json.loads(file.read_text())
    assert values["ratio"] is None and list(values)[:3] == ["split", "num_images", "num_objects"]
    values.pop("crowding")  # as older versions wrote the file
    write_json(file, values)
    census = read_record(file, Census, CENSUS)
    assert census.crowding is None and math.isnan(census.ratio)
    values.pop("remedies")
    write_json(file, values)
    with pytest.raises(UserError) as caught:
        read_record(file, Census, CENSUS)
    assert all(part in str(caught.value) for part in (str(file), "remedies", CENSUS)) and "\n" not in str(caught.value)
