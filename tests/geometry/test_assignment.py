from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from detector.core.structures import IGNORED, GroundTruth, Priors
from detector.data.formats.coco import CocoDataset
from detector.data.pipeline.batches import collate
from detector.data.pipeline.transforms import Flip, TransformContext, resize
from detector.geometry.anchors import AnchorGrid, default_sizes
from detector.geometry.assignment import ATSSAssigner, MaxIoUAssigner, base

RATIOS = (0.5, 1.0, 2.0)

K = 5
HEIGHT, WIDTH = 128, 192
GRIDS = ((16, 24), (8, 12), (4, 6))
LEVEL_SIZES = tuple(6 * height * width for height, width in GRIDS)


@pytest.fixture(scope="module")
def anchors() -> Tensor:
    grid = AnchorGrid((8, 16, 32), [(s, 1.3 * s) for s in (16, 32, 64)], RATIOS, exact=False)
    return torch.cat(grid.of_image((HEIGHT, WIDTH)))


def retinanet_grid(*strides: int) -> AnchorGrid:
    return AnchorGrid(strides, default_sizes(strides, exact=False), RATIOS, exact=False)


def ground_truths(counts: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """Return padded boxes (B, G, 4) and labels (B, G). The boxes may be thin, or as large as the image."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.zeros(len(counts), max(counts), 4)
    labels = torch.full((len(counts), max(counts)), IGNORED)
    for i, n in enumerate(counts):
        corners = torch.rand(n, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([WIDTH, HEIGHT])
        boxes[i, :n] = corners.flatten(1)
        labels[i, :n] = torch.randint(K, (n,), generator=generator)
    return boxes, labels


def not_ignored(labels: Tensor) -> Tensor:
    return torch.zeros_like(labels, dtype=torch.bool)


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_equals_torchvision_image_by_image(anchors: Tensor, seed: int, low_quality: bool):
    counts = [6, 1, 13, 3]
    boxes, labels = ground_truths(counts, seed)
    targets = MaxIoUAssigner(K, low_quality=low_quality)(
        Priors(anchors, LEVEL_SIZES), GroundTruth(boxes, labels, not_ignored(labels))
    )
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=low_quality)
    for i, n in enumerate(counts):
        matched = matcher(box_iou(boxes[i, :n], anchors))
        expected = labels[i, :n][matched.clamp(min=0)]
        expected[matched == Matcher.BELOW_LOW_THRESHOLD] = K
        expected[matched == Matcher.BETWEEN_THRESHOLDS] = IGNORED
        assert torch.equal(targets.labels[i], expected)
        foreground = matched >= 0
        assert torch.equal(targets.boxes[i, foreground], boxes[i, matched[foreground]])
        assert foreground.any() or not low_quality
    assert (targets.labels == K).any() and (targets.labels == IGNORED).any()


def test_low_quality_gives_every_ground_truth_its_best_anchor():
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    boxes, labels = torch.tensor([[[0.0, 0, 10, 1]]]), torch.tensor([[2]])  # IoU 0.1 with the first anchor
    for low_quality, expected in ((True, [2, K, K]), (False, [K, K, K])):
        targets = MaxIoUAssigner(K, low_quality=low_quality)(
            Priors(anchors, (3,)), GroundTruth(boxes, labels, not_ignored(labels))
        )
        assert targets.labels.tolist() == [expected]


def test_thresholds_include_their_lower_ends():
    anchors = torch.tensor([[0.0, 0, 8, 8]])
    labels = torch.tensor([[1]])
    for height, expected in ((4.0, 1), (3.9, IGNORED), (2.0, IGNORED), (1.9, K)):  # IoU = height / 8
        assigner = MaxIoUAssigner(K, foreground=0.5, background=0.25, low_quality=False)
        targets = assigner(
            Priors(anchors, (1,)), GroundTruth(torch.tensor([[[0, 0, 8, height]]]), labels, not_ignored(labels))
        )
        assert targets.labels.tolist() == [[expected]]


@pytest.mark.parametrize("assigner", [MaxIoUAssigner(K), MaxIoUAssigner(K, low_quality=False), ATSSAssigner(K)])
@pytest.mark.parametrize("max_pairs", [1, 3 * 3 * sum(LEVEL_SIZES)])
def test_ground_truths_in_parts_give_the_same_targets(
    anchors: Tensor, assigner, max_pairs: int, monkeypatch: pytest.MonkeyPatch
):
    """The parts have one or three ground truths. Each box occurs twice, so that equal boxes are in different parts."""
    boxes, labels = ground_truths([7, 3, 0], seed=1)
    boxes, labels = torch.cat((boxes, boxes), dim=1), torch.cat((labels, (labels + 1).clamp(max=K - 1)), dim=1)
    ignore = torch.zeros_like(labels, dtype=torch.bool)
    ignore[:, 2] = True
    expected = assigner(Priors(anchors, LEVEL_SIZES), GroundTruth(boxes, labels, ignore))
    monkeypatch.setattr(base, "MAX_PAIRS", max_pairs)
    parts = assigner(Priors(anchors, LEVEL_SIZES), GroundTruth(boxes, labels, ignore))
    assert torch.equal(parts.labels, expected.labels) and torch.equal(parts.boxes, expected.boxes)
    assert K in expected.labels and len(expected.labels.unique()) > 3


@pytest.mark.parametrize("assigner", [MaxIoUAssigner(K), ATSSAssigner(K)])
def test_without_ground_truth_all_is_background(anchors: Tensor, assigner):
    boxes, labels = torch.zeros(2, 1, 4), torch.full((2, 1), IGNORED)
    targets = assigner(Priors(anchors, LEVEL_SIZES), GroundTruth(boxes, labels, not_ignored(labels)))
    assert (targets.labels == K).all() and targets.boxes.isfinite().all()


@pytest.mark.parametrize("assigner", [MaxIoUAssigner(K), ATSSAssigner(K)])
def test_a_ground_truth_outside_the_image_gets_no_anchor(anchors: Tensor, assigner):
    boxes = torch.tensor([[[5000.0, 5000, 5100, 5100], [20, 20, 60, 60]]])
    labels = torch.tensor([[3, 1]])
    targets = assigner(Priors(anchors, LEVEL_SIZES), GroundTruth(boxes, labels, not_ignored(labels)))
    assert (targets.labels == 1).any() and not (targets.labels == 3).any()


@pytest.mark.parametrize("assigner", [MaxIoUAssigner(K), ATSSAssigner(K)])
def test_an_ignore_region_changes_background_anchors_only(assigner):
    anchors = torch.tensor(
        [
            [0.0, 0, 10, 10],  # on the object, inside the region
            [20, 0, 30, 10],  # inside the region
            [34, 0, 44, 10],  # 60% inside
            [36, 0, 46, 10],  # 40% inside
            [60, 0, 70, 10],  # outside
        ]
    )
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 40, 30]]])
    labels, ignore = torch.tensor([[1, 0]]), torch.tensor([[False, True]])
    targets = assigner(Priors(anchors, (5,)), GroundTruth(boxes, labels, ignore))
    assert targets.labels.tolist() == [[1, IGNORED, IGNORED, K, K]]
    # an anchor with the box of the region is not foreground
    fits = torch.tensor([[0.0, 0, 40, 30]])
    assert assigner(Priors(fits, (1,)), GroundTruth(boxes[:, 1:], labels[:, 1:], ignore[:, 1:])).labels.tolist() == [
        [IGNORED]
    ]


# ---- ATSS


def iou(a: np.ndarray, b: np.ndarray) -> float:
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def atss_of_one_image(
    anchors: np.ndarray, boxes: np.ndarray, ignore: np.ndarray, level_sizes: tuple[int, ...], candidates: int
) -> np.ndarray:
    """Return the ground truth of each anchor, (A,), by algorithm 1 of the paper: -1 is background, -2 is ignored."""
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    matches = np.full(len(anchors), -1)
    best = np.zeros(len(anchors))
    for g, box in enumerate(boxes):
        if ignore[g]:
            continue
        chosen, start = [], 0
        for size in level_sizes:
            level = np.arange(start, start + size)
            distances = ((centers[level] - (box[:2] + box[2:]) / 2) ** 2).sum(axis=1)
            chosen += level[np.argsort(distances, kind="stable")[:candidates]].tolist()
            start += size
        overlaps = [float(np.float32(iou(box, anchors[a]))) for a in chosen]
        threshold = mean(overlaps) + (stdev(overlaps) if len(overlaps) > 1 else 0)
        for a, overlap in zip(chosen, overlaps, strict=True):
            inside = min(*(centers[a] - box[:2]), *(box[2:] - centers[a])) > 0.01
            if overlap >= threshold and inside and overlap > best[a]:
                matches[a], best[a] = g, overlap
    for box in boxes[ignore]:
        shared = np.minimum(box[2:], anchors[:, 2:]) - np.maximum(box[:2], anchors[:, :2])
        area = (anchors[:, 2:] - anchors[:, :2]).prod(axis=1)
        matches[(matches == -1) & (shared.clip(min=0).prod(axis=1) > area / 2)] = -2
    return matches


def assert_is_atss(
    anchors: Tensor, boxes: Tensor, labels: Tensor, ignore: Tensor, level_sizes: tuple[int, ...], candidates: int
) -> int:
    """Compare the labels and boxes with the reference, and return the number of foreground anchors."""
    targets = ATSSAssigner(K, candidates=candidates)(Priors(anchors, level_sizes), GroundTruth(boxes, labels, ignore))
    for i, n in enumerate((labels >= 0).sum(dim=1).tolist()):
        inputs = (anchors.double().numpy(), boxes[i, :n].double().numpy(), ignore[i, :n].numpy())
        matches = torch.from_numpy(atss_of_one_image(*inputs, level_sizes, candidates))
        expected = torch.cat((labels[i, :n], torch.tensor([IGNORED, K])))[matches]
        assert torch.equal(targets.labels[i], expected)
        assert torch.equal(targets.boxes[i, matches >= 0], boxes[i, matches[matches >= 0]])
    assert targets.boxes.isfinite().all()
    return int(((targets.labels >= 0) & (targets.labels < K)).sum())


@pytest.mark.parametrize("candidates", [1, 9, 54, 200])  # 54 = 9 cells of 6 anchors; the last level has only 144
@pytest.mark.parametrize("seed", range(8))
def test_atss_equals_the_paper_image_by_image(anchors: Tensor, seed: int, candidates: int):
    boxes, labels = ground_truths([6, 1, 13, 0, 3], seed)
    ignore = (torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < 0.2) & (labels >= 0)
    assert assert_is_atss(anchors, boxes, labels, ignore, LEVEL_SIZES, candidates)


@pytest.mark.parametrize("seed", range(8))
def test_atss_of_ground_truths_smaller_than_any_anchor(anchors: Tensor, seed: int):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, 20, 2, generator=generator) * torch.tensor([WIDTH - 10, HEIGHT - 10])
    boxes = torch.cat((corners, corners + 1 + 7 * torch.rand(2, 20, 2, generator=generator)), dim=2)
    labels = torch.randint(K, (2, 20), generator=generator)
    assert assert_is_atss(anchors, boxes, labels, not_ignored(labels), LEVEL_SIZES, 9)


@pytest.mark.parametrize("candidates", [9, 10])
@pytest.mark.parametrize("seed", range(8))
def test_atss_of_ties_takes_the_first(anchors: Tensor, seed: int, candidates: int):
    """The box centers are between cells, at equal distances from several anchors. Each box occurs twice."""
    boxes, labels = ground_truths([12, 12], seed)
    boxes = (boxes / 8).round() * 8
    boxes[..., 2:] = torch.maximum(boxes[..., 2:], boxes[..., :2] + 8)
    boxes[:, 6:] = boxes[:, :6]
    assert assert_is_atss(anchors, boxes, labels, not_ignored(labels), LEVEL_SIZES, candidates)
    targets = ATSSAssigner(K, candidates=candidates)(
        Priors(anchors, LEVEL_SIZES), GroundTruth(boxes, labels, not_ignored(labels))
    )
    first = ATSSAssigner(K, candidates=candidates)(
        Priors(anchors, LEVEL_SIZES), GroundTruth(boxes[:, :6], labels[:, :6], not_ignored(labels[:, :6]))
    )
    assert torch.equal(targets.labels, first.labels)


def test_atss_by_hand():
    """Three of four anchors in a row are candidates, and so is a wide anchor on another level."""
    row = torch.tensor([[0.0, 0, 4, 8], [4, 0, 8, 8], [8, 0, 12, 8], [12, 0, 16, 8]])
    anchors = torch.cat((row, torch.tensor([[0.0, -4, 16, 12]])))
    boxes, labels = torch.tensor([[[1.0, 0, 9, 8]]]), torch.tensor([[2]])
    # IoUs 1/3, 1/2, 1/11 and 1/4: mean 0.294, standard deviation 0.170
    targets = ATSSAssigner(K, candidates=3)(Priors(anchors, (4, 1)), GroundTruth(boxes, labels, not_ignored(labels)))
    assert targets.labels.tolist() == [[K, 2, K, K, K]]
    assert targets.boxes[0, 1].tolist() == [1, 0, 9, 8]


def test_atss_where_all_candidates_have_the_same_iou():
    """The standard deviation is 0, so the threshold is the mean, which all candidates reach."""
    (anchors,) = AnchorGrid((8,), [(6,)], (1.0,), exact=False).of_image((80, 80))
    for side in (31.7, 40.1, 49.3):
        boxes, labels = torch.tensor([[[40 - side, 40 - side, 40 + side, 40 + side]]]), torch.tensor([[1]])
        targets = ATSSAssigner(K)(Priors(anchors, (100,)), GroundTruth(boxes, labels, not_ignored(labels)))
        assert (targets.labels == 1).sum() == 9


def test_atss_on_real_annotations(shared_data: Path):
    coco = shared_data / "coco_tiny"
    dataset = CocoDataset(images=coco / "val2017", annotations=coco / "annotations/instances_val2017.json")
    records = [record for record in dataset.records if len(record.boxes)][:4]
    padded = [-(-max(sides) // 128) * 128 for sides in zip(*((r.height, r.width) for r in records), strict=True)]
    levels = AnchorGrid(
        (8, 16, 32, 64, 128), default_sizes((8, 16, 32, 64, 128), exact=False), RATIOS, exact=False
    ).of_image(tuple(padded))
    num_boxes = max(len(record.boxes) for record in records)
    boxes, labels = torch.zeros(len(records), num_boxes, 4), torch.full((len(records), num_boxes), IGNORED)
    ignore = not_ignored(labels)
    for i, record in enumerate(records):
        n = len(record.boxes)
        boxes[i, :n], ignore[i, :n] = torch.from_numpy(record.boxes), torch.from_numpy(record.crowd)
        labels[i, :n] = torch.from_numpy(record.labels % K)
    assert assert_is_atss(torch.cat(levels), boxes, labels, ignore, tuple(map(len, levels)), 81)


@pytest.mark.parametrize("assigner", [MaxIoUAssigner(80), ATSSAssigner(80)])
def test_real_crowds_are_neither_background_nor_foreground(assigner, shared_data: Path):
    """COCO's crowds are flipped and resized with their images.

    Background anchors inside a crowd are ignored. All other labels are the same as without crowds.
    """
    coco = shared_data / "coco_tiny"
    dataset = CocoDataset(images=coco / "val2017", annotations=coco / "annotations/instances_val2017.json")
    crowded = [i for i, record in enumerate(dataset.records) if record.crowd.any()]
    assert len(crowded) == 11
    context, flip = TransformContext(np.random.default_rng(0), 0.0, lambda: dataset[0]), Flip(horizontal=1.0)
    samples = [flip(resize(dataset[i], 192, 256), context) for i in crowded]
    batch = collate(samples, 64)
    levels = retinanet_grid(8, 16, 32, 64).of_image((192, 256))
    anchors, sizes = torch.cat(levels), tuple(map(len, levels))

    targets = assigner(Priors(anchors, sizes), batch.truth)
    objects = batch.labels.masked_fill(batch.ignore, IGNORED)
    without_crowds = assigner(Priors(anchors, sizes), GroundTruth(batch.boxes, objects, torch.zeros_like(batch.ignore)))
    for i, sample in enumerate(samples):
        x1, y1, x2, y2 = anchors.double().T.numpy()
        inside = np.zeros(len(anchors), bool)
        for left, top, right, bottom in sample.boxes[sample.ignore].astype(float):
            width, height = np.minimum(x2, right) - np.maximum(x1, left), np.minimum(y2, bottom) - np.maximum(y1, top)
            inside |= width.clip(0) * height.clip(0) > 0.5 * (x2 - x1) * (y2 - y1)
        labels, plain = targets.labels[i].numpy(), without_crowds.labels[i].numpy()
        ignored = (plain == 80) & inside
        assert ignored.sum() > 20
        np.testing.assert_array_equal(labels, np.where(ignored, IGNORED, plain))
        assert torch.equal(targets.boxes[i][labels % 80 == labels], without_crowds.boxes[i][labels % 80 == labels])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("assigner", [MaxIoUAssigner(K), ATSSAssigner(K)])
def test_a_gpu_assigns_the_same_without_waiting(anchors: Tensor, assigner):
    boxes, labels = ground_truths([6, 1, 13, 0, 3], 0)
    tensors = (anchors, boxes, labels, torch.rand(labels.shape) < 0.2)
    expected = assigner(Priors(anchors, LEVEL_SIZES), GroundTruth(*tensors[1:]))
    on_gpu = [tensor.cuda() for tensor in tensors]
    torch.cuda.set_sync_debug_mode("error")
    try:
        targets = assigner(Priors(on_gpu[0], LEVEL_SIZES), GroundTruth(*on_gpu[1:]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(targets.labels.cpu(), expected.labels)
    foreground = (expected.labels >= 0) & (expected.labels < K)
    assert torch.equal(targets.boxes.cpu()[foreground], expected.boxes[foreground])


@pytest.mark.parametrize("assigner", [MaxIoUAssigner(K), MaxIoUAssigner(K, background=0.0), ATSSAssigner(K)])
@pytest.mark.parametrize("shape", [(0, 2, 6), (2, 0, 6), (2, 2, 0), (0, 0, 0)], ids="B{0[0]} G{0[1]} A{0[2]}".format)
def test_without_images_ground_truths_or_anchors(assigner, shape: tuple[int, int, int]):
    num_images, num_boxes, num_anchors = shape
    anchors = torch.tensor([[0.0, 0, 8, 8]]).repeat(num_anchors, 1)
    boxes = torch.tensor([1.0, 1, 8, 8]).repeat(num_images, num_boxes, 1)
    labels = torch.zeros(num_images, num_boxes, dtype=torch.int64)
    targets = assigner(Priors(anchors, (num_anchors, 0)), GroundTruth(boxes, labels, not_ignored(labels)))
    assert targets.labels.dtype == torch.int64 and targets.boxes.dtype == torch.float32
    assert torch.equal(targets.labels, torch.full((num_images, num_anchors), K))
    assert targets.boxes.shape == (num_images, num_anchors, 4) and targets.boxes.isfinite().all()
