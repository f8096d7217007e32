import math

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.core.structures import Detections, Predictions, Priors
from detector.geometry.coders import DeltaCoder
from detector.models.postprocess import postprocess

DELTAS = DeltaCoder()

K = 3
STRIDES = (8, 16)
LIMITS = {"score_threshold": 0.3, "nms_iou": 0.5, "candidates_per_level": 40, "max_detections": 30}


def anchors_of(height: int, width: int, stride: int) -> Tensor:
    """(A, 4), one square a cell, three cells wide, row by row."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = stride * (torch.stack((x, y), dim=-1).reshape(-1, 2) + 0.5)
    return torch.cat((centres - 1.5 * stride, centres + 1.5 * stride), dim=1).float()


def levels_of(cells: tuple[int, int], seed: int) -> list[tuple[Tensor, Tensor]]:
    """Of each level, logits of few values (h, w, K) and deltas (h, w, 4) of an image of so many 16-pixel cells."""
    generator = torch.Generator().manual_seed(seed)
    levels = []
    for factor in (2, 1):
        shape = cells[0] * factor, cells[1] * factor
        logits = torch.randint(-2, 3, (*shape, K), generator=generator).float() / 2
        levels.append((logits, torch.randint(-1, 2, (*shape, 4), generator=generator) / 8))
    return levels


def predictions_of(images: list[list[tuple[Tensor, Tensor]]], canvas: tuple[int, int]) -> Predictions:
    """Of a batch whose images lie at the upper left of the canvas; nothing is said of the padding."""
    logits, deltas, anchors = [], [], []
    for level, factor in enumerate((2, 1)):
        height, width = canvas[0] * factor, canvas[1] * factor
        padded = torch.full((len(images), height, width, K), -20.0), torch.zeros(len(images), height, width, 4)
        for i, image in enumerate(images):
            for whole, own in zip(padded, image[level], strict=True):
                whole[i, : own.shape[0], : own.shape[1]] = own
        logits.append(padded[0].flatten(1, 2))
        deltas.append(padded[1].flatten(1, 2))
        anchors.append(anchors_of(height, width, STRIDES[level]))
    sizes = tuple(map(len, anchors))
    return Predictions(torch.cat(logits, 1), torch.cat(deltas, 1), Priors(torch.cat(anchors), sizes), DELTAS)


def found_in(images: list[list[tuple[Tensor, Tensor]]], cells: list[tuple[int, int]], canvas: tuple[int, int]):
    sizes = 16 * torch.tensor(cells)
    return postprocess(predictions_of(images, canvas), sizes, sizes, **LIMITS)


def by_the_rules(image: list[tuple[Tensor, Tensor]], cells: tuple[int, int]) -> list[tuple[float, int, list[float]]]:
    """Score, label and box of one image's detections, sorted and suppressed one by one; equal scores in order."""
    candidates = []
    for (logits, deltas), stride in zip(image, STRIDES, strict=True):
        scores = logits.sigmoid().flatten().tolist()
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[: LIMITS["candidates_per_level"]]
        anchors = anchors_of(*logits.shape[:2], stride).double().numpy()
        for i in sorted(best):
            if scores[i] > LIMITS["score_threshold"]:
                anchor, (dx, dy, dw, dh) = anchors[i // K], deltas.reshape(-1, 4)[i // K].double().numpy()
                side = anchor[2] - anchor[0]
                centre = (anchor[:2] + anchor[2:]) / 2 + side * np.array([dx, dy])
                half = side * np.exp([dw, dh]) / 2
                box = np.clip(np.concatenate((centre - half, centre + half)), 0, 16 * np.tile(cells[::-1], 2))
                candidates.append((scores[i], i % K, box))
    kept: list = []
    for score, label, box in sorted(candidates, key=lambda one: -one[0]):
        if all(other != label or iou(box, seen) <= LIMITS["nms_iou"] for _, other, seen in kept):
            kept.append((score, label, box))
    return kept[: LIMITS["max_detections"]]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


@pytest.mark.parametrize("seed", range(5))
def test_equal_scores_give_the_same_detections_in_any_batch_and_padding(seed: int):
    """Five scores among hundreds of anchors: ties among candidates, in their suppression and at the image's limit."""
    cells = [(5, 6), (7, 4), (6, 9), (5, 6)]
    images = [levels_of(size, 10 * seed + i) for i, size in enumerate(cells)]
    alone = [found_in([image], [size], size)[0] for image, size in zip(images, cells, strict=True)]
    for image, size, found in zip(images, cells, alone, strict=True):
        expected = by_the_rules(image, size)
        assert len(found.scores) == len(expected) == LIMITS["max_detections"] > len(set(found.scores.tolist()))
        assert found.labels.tolist() == [label for _, label, _ in expected]
        np.testing.assert_allclose(found.scores, [score for score, *_ in expected], rtol=1e-6)
        np.testing.assert_allclose(found.boxes, np.stack([box for *_, box in expected]), atol=1e-3)
    for order in ([0, 1], [3, 2, 0], [1, 3, 2, 0], [2] * 9 + [0, 1, 3]):
        batch = found_in([images[i] for i in order], [cells[i] for i in order], (8, 11))
        for i, found in zip(order, batch, strict=True):
            assert_same(found, alone[i])


def assert_same(a: Detections, b: Detections) -> None:
    assert torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores) and torch.equal(a.labels, b.labels)


def boxes_as_predictions(boxes: Tensor, scores: Tensor) -> Predictions:
    """One image, one class: each box is its own anchor."""
    return Predictions(
        scores.logit()[None, :, None], torch.zeros(1, len(boxes), 4), Priors(boxes, (len(boxes),)), DELTAS
    )


def test_boxes_without_area_displace_none():
    """The best 300 of 400 lie beside the image, above it, or are a line or a point on its edge."""
    left = torch.arange(100.0) * 4
    real = torch.stack((left, torch.zeros(100), left + 3, torch.full((100,), 5.0)), dim=1)
    beside = torch.tensor([[-20.0, 1, -3, 9], [410, 1, 430, 9], [3, -9, 8, -1], [5, 0, 5, 8], [2, 30, 9, 44]])
    boxes = torch.cat((beside.repeat(60, 1), real))
    scores = torch.cat((torch.full((300,), 0.9), torch.linspace(0.8, 0.4, 100)))
    size = torch.tensor([[20, 400]])
    limits = {"score_threshold": 0.05, "nms_iou": 0.5, "candidates_per_level": 1000, "max_detections": 100}
    (found,) = postprocess(boxes_as_predictions(boxes, scores), size, 2 * size, **limits)
    torch.testing.assert_close(found.boxes, 2 * real)
    torch.testing.assert_close(found.scores, scores[300:])
    (nothing,) = postprocess(boxes_as_predictions(beside, scores[:5]), size, size, **limits)
    assert nothing.boxes.shape == (0, 4)


def test_a_box_that_is_not_a_number_is_shown():
    boxes = torch.tensor([[math.nan, 1, 5, 9], [-20, 1, -3, 9]])
    size = torch.tensor([[20, 400]])
    (found,) = postprocess(boxes_as_predictions(boxes, torch.tensor([0.9, 0.8])), size, size, **LIMITS)
    assert found.scores.tolist() == pytest.approx([0.9]) and found.boxes.isnan().any()


def test_a_box_that_is_not_a_number_changes_no_other_image():
    image, broken = levels_of((5, 6), 0), levels_of((5, 6), 1)
    broken[0][1][2, 3] = math.nan
    alone = found_in([image], [(5, 6)], (5, 6))[0]
    assert_same(found_in([broken, image], [(5, 6)] * 2, (5, 6))[1], alone)


def test_without_images_anchors_or_classes():
    for shape in ((0, 6, 3), (2, 0, 3), (2, 6, 0)):
        num_images, num_anchors, _ = shape
        anchors = torch.tensor([[0.0, 0, 8, 8]]).repeat(num_anchors, 1)
        predictions = Predictions(
            torch.zeros(shape), torch.zeros(*shape[:2], 4), Priors(anchors, (num_anchors, 0)), DELTAS
        )
        sizes = torch.full((num_images, 2), 16)
        found = postprocess(predictions, sizes, sizes, **LIMITS)
        assert [one.boxes.shape for one in found] == [(0, 4)] * num_images


@pytest.mark.parametrize("share", [1.0, 0.02])
def test_nan_is_shown_and_not_taken_for_nothing_found(share: float):
    """All logits, or some of them."""
    image = levels_of((5, 6), 0)
    logits = image[0][0]
    logits[torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)) < share] = torch.nan
    (found,) = found_in([image], [(5, 6)], (5, 6))
    assert found.scores.isnan().any()
