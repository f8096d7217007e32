"""The rules of FCOS, TOOD, YOLOX and RTMDet against loops in fp64, and ATSS on points."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import assignment_references as reference
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.fcos import FCOS

from detector.core.structures import IGNORED, GroundTruth, Predictions, Priors, Targets, is_foreground
from detector.data.formats.coco import CocoDataset
from detector.geometry.assignment import (
    Assigner,
    ATSSAssigner,
    CentreAssigner,
    SimOTAAssigner,
    SoftLabelAssigner,
    TaskAlignedAssigner,
    base,
)
from detector.geometry.coders import DeltaCoder

K = 4
SIZE = 72, 96
STRIDES = (8, 16, 32)
Reference = Callable[[reference.Image], tuple[list[int], list[float] | None]]
RULES: dict[str, tuple[Assigner, Reference]] = {
    "centre": (CentreAssigner(K), lambda image: (reference.centre(image, 1.5, 8), None)),
    "centre, all of the object": (
        CentreAssigner(K, radius=None, reach=5.0),
        lambda image: (reference.centre(image, None, 5), None),
    ),
    "task_aligned": (TaskAlignedAssigner(K), lambda image: reference.task_aligned(image, 13, 1, 6, False)),
    "task_aligned, enlarge_small": (
        TaskAlignedAssigner(K, topk=5, alpha=0.5, beta=2.0, enlarge_small=True),
        lambda image: reference.task_aligned(image, 5, 0.5, 2, True),
    ),
    "one_to_one": (
        TaskAlignedAssigner(K).one_to_one(),
        lambda image: reference.task_aligned(image, 7, 1, 6, False, one_to_one=True),
    ),
    "sim_ota": (SimOTAAssigner(K), lambda image: reference.sim_ota(image, 2.5, 10, 3)),
    "sim_ota, a small region": (
        SimOTAAssigner(K, radius=0.8, candidates=20, iou_weight=1.0),
        lambda image: reference.sim_ota(image, 0.8, 20, 1),
    ),
    "soft_label": (SoftLabelAssigner(K), lambda image: reference.soft_label(image, 3, 13, 3)),
}
MAIN = [name for name in RULES if "," not in name]


def points(size: tuple[int, int], strides: tuple[int, ...] = STRIDES) -> Priors:
    """Return a square of one stride for each cell of each level."""
    levels = []
    for stride in strides:
        y, x = torch.meshgrid(*(torch.arange(-(-side // stride)) * float(stride) for side in size), indexing="ij")
        levels.append(torch.stack((x, y, x + stride, y + stride), dim=-1).reshape(-1, 4))
    return Priors(torch.cat(levels), tuple(map(len, levels)), strides)


POINTS = points(SIZE)


def random_truth(counts: list[int], seed: int) -> GroundTruth:
    """Return padded objects of all sizes. A fifth are ignore regions, some boxes are equal, and some are tiny."""
    generator = torch.Generator().manual_seed(seed)
    boxes, labels = torch.zeros(len(counts), max(counts), 4), torch.full((len(counts), max(counts)), IGNORED)
    for i, n in enumerate(counts):
        centers = torch.rand(n, 2, generator=generator) * torch.tensor([SIZE[1], SIZE[0]])
        half_sides = 1.5 * 40 ** torch.rand(n, 2, generator=generator)  # up to 120 pixels, larger than the image
        boxes[i, :n] = torch.cat((centers - half_sides, centers + half_sides), dim=1)
        boxes[i, n // 2 : n // 2 + n // 4] = boxes[i, : n // 4]
        labels[i, :n] = torch.randint(K, (n,), generator=generator)
    ignore = (torch.rand(labels.shape, generator=generator) < 0.2) & (labels >= 0)
    return GroundTruth(boxes, labels, ignore)


def random_predictions(
    priors: Priors, truth: GroundTruth, seed: int, dtype: torch.dtype = torch.float32
) -> Predictions:
    """Return boxes that are like a random object of their image, and scores that are higher for its class."""
    generator = torch.Generator().manual_seed(seed)
    num_images, num_boxes = truth.labels.shape
    chosen = torch.randint(num_boxes, (num_images, len(priors)), generator=generator)
    boxes = truth.boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
    boxes = boxes + 0.15 * (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2) * torch.randn(
        boxes.shape, generator=generator
    )
    boxes = torch.cat((boxes[..., :2], boxes[..., 2:].maximum(boxes[..., :2] + 0.5)), dim=-1)
    logits = torch.randn(num_images, len(priors), K, generator=generator) - 2
    logits.scatter_add_(2, truth.labels.clamp(min=0).gather(1, chosen)[..., None], torch.full((*chosen.shape, 1), 2.0))
    raw = DeltaCoder().encode(boxes, priors.boxes)
    return Predictions(logits.to(dtype), raw.to(dtype), priors, DeltaCoder())


def image_of(priors: Priors, truth: GroundTruth, predictions: Predictions, i: int) -> reference.Image:
    n = int((truth.labels[i] >= 0).sum())
    return reference.Image(
        truth.boxes[i, :n].tolist(),
        truth.labels[i, :n].tolist(),
        truth.ignore[i, :n].tolist(),
        priors.boxes.tolist(),
        priors.strides().tolist(),
        np.repeat(np.arange(len(priors.level_sizes)), priors.level_sizes).tolist(),
        predictions.boxes[i].tolist(),
        predictions.ranking_logits[i].double().numpy(),
    )


def assert_equals_reference(name: str, priors: Priors, truth: GroundTruth, predictions: Predictions) -> Targets:
    rule, of_image = RULES[name]
    targets = rule(priors, truth, predictions)
    for i in range(len(truth.boxes)):
        matched, quality = of_image(image_of(priors, truth, predictions, i))
        labels = [[K, IGNORED][-1 - g] if g < 0 else int(truth.labels[i, g]) for g in matched]
        assert targets.labels[i].tolist() == labels
        is_fg = torch.tensor(matched) >= 0
        assert targets.matched[i, is_fg].tolist() == [g for g in matched if g >= 0]
        assert torch.equal(targets.boxes[i, is_fg], truth.boxes[i, targets.matched[i, is_fg]])
        if quality is None:
            assert targets.quality is None
        else:
            torch.testing.assert_close(targets.quality[i], torch.tensor(quality), rtol=1e-4, atol=1e-6)
    return targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", RULES)
def test_equals_the_loops(name: str, dtype: torch.dtype):
    """The images have many objects, one object and none. The counts show that the rule is tested."""
    num_fg = num_ignored = 0
    for seed in range(6):
        truth = random_truth([12, 1, 6, 0], seed)
        predictions = random_predictions(POINTS, truth, seed, dtype)
        targets = assert_equals_reference(name, POINTS, truth, predictions)
        num_fg, num_ignored = num_fg + is_foreground(targets.labels, K).sum(), num_ignored + (targets.labels < 0).sum()
    assert num_fg > 30 and num_ignored > 10


@pytest.mark.parametrize("name", MAIN)
def test_ties_take_the_first_prior_and_the_first_object(name: str):
    """All priors predict the same box and scores. The centers are symmetric, and each object occurs three times."""
    boxes = torch.tensor([[16.0, 8, 80, 72], [16, 8, 80, 72], [8, 8, 24, 24], [16, 8, 80, 72]])
    truth = GroundTruth(boxes[None], torch.tensor([[1, 1, 2, 1]]), torch.zeros(1, 4, dtype=torch.bool))
    raw = DeltaCoder().encode(torch.tensor([16.0, 8, 80, 60]), POINTS.boxes)[None]
    logits = torch.full((1, len(POINTS), K), -1.0)
    targets = assert_equals_reference(name, POINTS, truth, Predictions(logits, raw, POINTS, DeltaCoder()))
    assert set(targets.matched[is_foreground(targets.labels, K)].tolist()) <= {0, 2}


@pytest.mark.parametrize("name", MAIN)
def test_ground_truths_in_parts_give_the_same_targets(name: str, monkeypatch: pytest.MonkeyPatch):
    truth = random_truth([12, 7, 0], 5)
    predictions, rule = random_predictions(POINTS, truth, 5), RULES[name][0]
    expected = rule(POINTS, truth, predictions)
    for max_pairs in (1, 3 * 5 * len(POINTS)):  # parts of one and of five objects
        monkeypatch.setattr(base, "MAX_PAIRS", max_pairs)
        targets = rule(POINTS, truth, predictions)
        assert torch.equal(targets.labels, expected.labels) and torch.equal(targets.matched, expected.matched)
        assert expected.quality is None or torch.equal(targets.quality, expected.quality)


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("shape", [(0, 2, 6), (2, 0, 6), (2, 2, 0)], ids="B{0[0]} G{0[1]} A{0[2]}".format)
def test_without_images_objects_or_priors(name: str, shape: tuple[int, int, int]):
    num_images, num_boxes, num_priors = shape
    priors = Priors(torch.tensor([[0.0, 0, 8, 8]]).repeat(num_priors, 1), (num_priors, 0), (8, 16))
    labels = torch.zeros(num_images, num_boxes, dtype=torch.int64)
    truth = GroundTruth(torch.tensor([1.0, 1, 8, 8]).repeat(*labels.shape, 1), labels, labels > 0)
    outputs = torch.zeros(num_images, num_priors, K), torch.zeros(num_images, num_priors, 4)
    targets = RULES[name][0](priors, truth, Predictions(*outputs, priors, DeltaCoder()))
    assert torch.equal(targets.labels, torch.full((num_images, num_priors), K))
    assert targets.boxes.shape == (num_images, num_priors, 4)
    if name != "centre":
        assert torch.equal(targets.quality, torch.zeros(num_images, num_priors))


@pytest.mark.parametrize("name", MAIN[1:])
def test_the_targets_have_no_gradient_and_the_boxes_keep_theirs(name: str):
    truth = random_truth([4, 3], 0)
    half = random_predictions(POINTS, truth, 0)
    predictions = Predictions(half.logits.requires_grad_(), half.raw.requires_grad_(), POINTS, DeltaCoder())
    assert not RULES[name][0](POINTS, truth, predictions).quality.requires_grad
    assert predictions.boxes.requires_grad


@pytest.mark.parametrize("name", MAIN[1:])
def test_predictions_that_are_not_finite_match_nothing(name: str):
    truth = random_truth([4], 0)
    predictions = random_predictions(POINTS, truth, 0)
    logits, raw = predictions.logits.clone(), predictions.raw.clone()
    logits[:, ::2], raw[:, 1::2] = np.nan, np.nan
    targets = RULES[name][0](POINTS, truth, Predictions(logits, raw, POINTS, DeltaCoder()))
    assert not is_foreground(targets.labels, K).any() and targets.quality.eq(0).all()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_never_waits_for_values_of_the_device(name: str):
    """Tensors of the meta device have no values. A copy to the host, or a shape that depends on values, fails."""
    on_meta = [torch.empty(shape, device="meta") for shape in ((2, 3, 4), (2, len(POINTS), K), (2, len(POINTS), 4))]
    labels = torch.empty(2, 3, dtype=torch.int64, device="meta")
    priors = Priors(POINTS.boxes.to("meta"), POINTS.level_sizes, STRIDES)
    predictions = Predictions(*on_meta[1:], priors, DeltaCoder())
    targets = RULES[name][0](priors, GroundTruth(on_meta[0], labels, labels.bool()), predictions)
    assert targets.labels.shape == (2, len(POINTS)) and targets.labels.is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", RULES)
def test_a_gpu_assigns_the_same_without_waiting(name: str):
    truth = random_truth([12, 1, 6, 0], 0)
    predictions, rule = random_predictions(POINTS, truth, 0), RULES[name][0]
    expected = rule(POINTS, truth, predictions)
    priors = Priors(POINTS.boxes.cuda(), POINTS.level_sizes, STRIDES)
    on_gpu = GroundTruth(truth.boxes.cuda(), truth.labels.cuda(), truth.ignore.cuda())
    predictions = Predictions(predictions.logits.cuda(), predictions.raw.cuda(), priors, DeltaCoder())
    torch.cuda.set_sync_debug_mode("error")
    try:
        targets = rule(priors, on_gpu, predictions)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(targets.labels.cpu(), expected.labels) and torch.equal(targets.matched.cpu(), expected.matched)


# ---- hand-made images


def perfect(priors: Priors, box: list[float], label: int, scores: float = 0.5) -> Predictions:
    """Return predictions that all have this box, with this score of its class and 0.1 of the other classes."""
    p = torch.full((1, len(priors), K), 0.1)
    p[..., label] = scores
    return Predictions(p.logit(), DeltaCoder().encode(torch.tensor(box), priors.boxes)[None], priors, DeltaCoder())


def only(box: list[float], label: int = 1) -> GroundTruth:
    return GroundTruth(torch.tensor([[box]]), torch.tensor([[label]]), torch.zeros(1, 1, dtype=torch.bool))


def foreground(name_or_rule: str | Assigner, priors: Priors, truth: GroundTruth, predictions: Predictions) -> list[int]:
    rule = RULES[name_or_rule][0] if isinstance(name_or_rule, str) else name_or_rule
    return is_foreground(rule(priors, truth, predictions).labels[0], K).nonzero()[:, 0].tolist()


def test_an_object_that_contains_no_center():
    """A rule with an inside test gives no prior. The center region of SimOTA and a larger small object give priors."""
    box = [21.0, 21.0, 23.0, 23.0]  # the nearest centers are (20, 20), (24, 24) and (16, 16)
    truth, predictions = only(box), perfect(POINTS, box, 1)
    for name in ("centre", "task_aligned", "soft_label"):
        assert foreground(name, POINTS, truth, predictions) == []
    enlarged = foreground(TaskAlignedAssigner(K, enlarge_small=True), POINTS, truth, predictions)
    centers = POINTS.centers[enlarged].tolist()
    assert centers == [[20, 20], [28, 20], [20, 28], [28, 28], [24, 24], [16, 16]]
    assert len(foreground("sim_ota", POINTS, truth, predictions)) == 10
    # a long thin object is enlarged only in its thin direction
    thin = [20.5, 3.0, 23.0, 70.0]
    for a in foreground(
        TaskAlignedAssigner(K, topk=99, enlarge_small=True), POINTS, only(thin), perfect(POINTS, thin, 1)
    ):
        assert abs(POINTS.centers[a, 0] - 21.75) < 8 and 3 < POINTS.centers[a, 1] < 70


@pytest.mark.parametrize("name", MAIN)
def test_an_object_larger_than_the_image_has_priors(name: str):
    box = [-80.0, -90.0, 240.0, 210.0]
    chosen = foreground(name, POINTS, only(box), perfect(POINTS, box, 1))
    assert chosen and (name != "centre" or min(chosen) >= sum(POINTS.level_sizes[:2]))  # FCOS: only the last level


def test_a_task_aligned_prior_needs_an_overlap():
    box = [16.0, 16.0, 48.0, 48.0]
    assert foreground("task_aligned", POINTS, only(box), perfect(POINTS, [60.0, 60, 70, 70], 1)) == []


def test_sim_ota_takes_as_many_priors_as_the_sum_of_ious():
    box = [16.0, 16.0, 48.0, 48.0]
    for height, expected in ((32.0, 10), (16.0, 5), (8.5, 2), (1.0, 1)):  # IoU = height / 32
        assert (
            len(foreground("sim_ota", POINTS, only(box), perfect(POINTS, [16.0, 16, 48, 16 + height], 1))) == expected
        )


# ---- FCOS of torchvision


def torchvision_matches(priors: Priors, truth: GroundTruth) -> list[Tensor]:
    """Return the matches of torchvision's FCOS. Its loss function computes them and gives them to the head."""
    head = SimpleNamespace(compute_loss=lambda targets, outputs, anchors, matched: matched)
    is_real = truth.labels >= 0
    targets = [{"boxes": boxes[real]} for boxes, real in zip(truth.boxes, is_real, strict=True)]
    anchors = [priors.boxes] * len(targets)
    return FCOS.compute_loss(
        SimpleNamespace(center_sampling_radius=1.5, head=head), targets, {}, anchors, list(priors.level_sizes)
    )


def assert_equals_torchvision(priors: Priors, truth: GroundTruth, num_classes: int) -> int:
    targets = CentreAssigner(num_classes)(priors, truth)
    for labels, matched, true_labels, expected in zip(
        targets.labels, targets.matched, truth.labels, torchvision_matches(priors, truth), strict=True
    ):
        is_fg = expected >= 0
        assert torch.equal(labels, true_labels[expected.clamp(min=0)].where(is_fg, num_classes))
        assert torch.equal(matched[is_fg], expected[is_fg])
    return int(is_foreground(targets.labels, num_classes).sum())


@pytest.mark.parametrize("seed", range(5))
def test_centre_equals_torchvision(seed: int):
    """The areas are multiples of 8, because torchvision subtracts them from 1e8 in fp32."""
    truth = random_truth([20, 1, 9, 0], seed)
    boxes = truth.boxes.div(4).round().mul(4)
    boxes = torch.cat((boxes[..., :2], boxes[..., 2:].maximum(boxes[..., :2] + 4)), dim=-1)
    truth = GroundTruth(boxes.where(truth.labels[..., None] >= 0, 0), truth.labels, torch.zeros_like(truth.ignore))
    assert assert_equals_torchvision(points((96, 128), (8, 16, 32)), truth, K) > 40


def test_centre_equals_torchvision_on_real_images(shared_data: Path):
    coco = shared_data / "coco_tiny"
    dataset = CocoDataset(images=coco / "val2017", annotations=coco / "annotations/instances_val2017.json")
    num_fg = 0
    for record in dataset.records:
        boxes, labels = torch.from_numpy(record.boxes)[None], torch.from_numpy(record.labels)[None]
        if len(record.boxes):
            truth = GroundTruth(boxes, labels, torch.zeros_like(labels, dtype=torch.bool))
            size = tuple(-(-side // 128) * 128 for side in (record.height, record.width))
            num_fg += assert_equals_torchvision(points(size, (8, 16, 32, 64, 128)), truth, 80)
    assert num_fg > 1000


# ---- ATSS


def test_atss_on_points_is_atss_on_squares_of_eight_strides():
    truth = random_truth([12, 1, 6, 0], 0)
    half = 4 * POINTS.strides()[:, None]
    squares = Priors(torch.cat((POINTS.centers - half, POINTS.centers + half), dim=1), POINTS.level_sizes, STRIDES)
    targets, expected = ATSSAssigner(K, anchor_scale=8.0)(POINTS, truth), ATSSAssigner(K)(squares, truth)
    assert torch.equal(targets.labels, expected.labels) and torch.equal(targets.boxes, expected.boxes)
    assert is_foreground(targets.labels, K).sum() > 10
    assert not torch.equal(targets.labels, ATSSAssigner(K)(POINTS, truth).labels)
