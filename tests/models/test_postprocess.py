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
    """Return a square anchor for each cell, (A, 4), three cells wide, row by row."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centers = stride * (torch.stack((x, y), dim=-1).reshape(-1, 2) + 0.5)
    return torch.cat((centers - 1.5 * stride, centers + 1.5 * stride), dim=1).float()


def levels_of(cells: tuple[int, int], seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return logits (h, w, K) with few values and offsets (h, w, 4) of each level. A cell has 16 pixels."""
    generator = torch.Generator().manual_seed(seed)
    levels = []
    for factor in (2, 1):
        shape = cells[0] * factor, cells[1] * factor
        logits = torch.randint(-2, 3, (*shape, K), generator=generator).float() / 2
        levels.append((logits, torch.randint(-1, 2, (*shape, 4), generator=generator) / 8))
    return levels


def predictions_of(images: list[list[tuple[Tensor, Tensor]]], canvas: tuple[int, int]) -> Predictions:
    """Return the predictions of a batch. Images are at the upper left of the canvas. The padding has low scores."""
    logits, deltas, anchors = [], [], []
    for level, factor in enumerate((2, 1)):
        height, width = canvas[0] * factor, canvas[1] * factor
        padded = torch.full((len(images), height, width, K), -20.0), torch.zeros(len(images), height, width, 4)
        for i, image in enumerate(images):
            for canvas_map, image_map in zip(padded, image[level], strict=True):
                canvas_map[i, : image_map.shape[0], : image_map.shape[1]] = image_map
        logits.append(padded[0].flatten(1, 2))
        deltas.append(padded[1].flatten(1, 2))
        anchors.append(anchors_of(height, width, STRIDES[level]))
    sizes = tuple(map(len, anchors))
    return Predictions(torch.cat(logits, 1), torch.cat(deltas, 1), Priors(torch.cat(anchors), sizes), DELTAS)


def detect(images: list[list[tuple[Tensor, Tensor]]], cells: list[tuple[int, int]], canvas: tuple[int, int]):
    sizes = 16 * torch.tensor(cells)
    return postprocess(predictions_of(images, canvas), sizes, sizes, **LIMITS)


def by_the_rules(image: list[tuple[Tensor, Tensor]], cells: tuple[int, int]) -> list[tuple[float, int, list[float]]]:
    """Return score, label and box of the detections of an image, computed one box at a time."""
    candidates = []
    for (logits, deltas), stride in zip(image, STRIDES, strict=True):
        scores = logits.sigmoid().flatten().tolist()
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[: LIMITS["candidates_per_level"]]
        anchors = anchors_of(*logits.shape[:2], stride).double().numpy()
        for i in sorted(best):
            if scores[i] > LIMITS["score_threshold"]:
                anchor, (dx, dy, dw, dh) = anchors[i // K], deltas.reshape(-1, 4)[i // K].double().numpy()
                side = anchor[2] - anchor[0]
                center = (anchor[:2] + anchor[2:]) / 2 + side * np.array([dx, dy])
                half = side * np.exp([dw, dh]) / 2
                box = np.clip(np.concatenate((center - half, center + half)), 0, 16 * np.tile(cells[::-1], 2))
                candidates.append((scores[i], i % K, box))
    detections: list = []
    for score, label, box in sorted(candidates, key=lambda candidate: -candidate[0]):
        if all(other != label or iou(box, better) <= LIMITS["nms_iou"] for _, other, better in detections):
            detections.append((score, label, box))
    return detections[: LIMITS["max_detections"]]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


@pytest.mark.parametrize("seed", range(5))
def test_equal_scores_give_the_same_detections_in_any_batch_and_padding(seed: int):
    """Hundreds of anchors have five scores: ties among the candidates, in their suppression, and at the limit."""
    cells = [(5, 6), (7, 4), (6, 9), (5, 6)]
    images = [levels_of(size, 10 * seed + i) for i, size in enumerate(cells)]
    single = [detect([image], [size], size)[0] for image, size in zip(images, cells, strict=True)]
    for image, size, results in zip(images, cells, single, strict=True):
        expected = by_the_rules(image, size)
        assert len(results.scores) == len(expected) == LIMITS["max_detections"] > len(set(results.scores.tolist()))
        assert results.labels.tolist() == [label for _, label, _ in expected]
        np.testing.assert_allclose(results.scores, [score for score, *_ in expected], rtol=1e-6)
        np.testing.assert_allclose(results.boxes, np.stack([box for *_, box in expected]), atol=1e-3)
    for order in ([0, 1], [3, 2, 0], [1, 3, 2, 0], [2] * 9 + [0, 1, 3]):
        batch = detect([images[i] for i in order], [cells[i] for i in order], (8, 11))
        for i, results in zip(order, batch, strict=True):
            assert_same(results, single[i])


def assert_same(a: Detections, b: Detections) -> None:
    assert torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores) and torch.equal(a.labels, b.labels)


def boxes_as_predictions(boxes: Tensor, scores: Tensor) -> Predictions:
    """Return the predictions for an image and a class. Each box is an anchor."""
    return Predictions(
        scores.logit()[None, :, None], torch.zeros(1, len(boxes), 4), Priors(boxes, (len(boxes),)), DELTAS
    )


def test_boxes_without_area_do_not_replace_other_boxes():
    """The best 300 of 400 boxes are outside the image, or are a line or a point on its edge."""
    left = torch.arange(100.0) * 4
    real = torch.stack((left, torch.zeros(100), left + 3, torch.full((100,), 5.0)), dim=1)
    outside = torch.tensor([[-20.0, 1, -3, 9], [410, 1, 430, 9], [3, -9, 8, -1], [5, 0, 5, 8], [2, 30, 9, 44]])
    boxes = torch.cat((outside.repeat(60, 1), real))
    scores = torch.cat((torch.full((300,), 0.9), torch.linspace(0.8, 0.4, 100)))
    size = torch.tensor([[20, 400]])
    limits = {"score_threshold": 0.05, "nms_iou": 0.5, "candidates_per_level": 1000, "max_detections": 100}
    (results,) = postprocess(boxes_as_predictions(boxes, scores), size, 2 * size, **limits)
    torch.testing.assert_close(results.boxes, 2 * real)
    torch.testing.assert_close(results.scores, scores[300:])
    (empty,) = postprocess(boxes_as_predictions(outside, scores[:5]), size, size, **limits)
    assert empty.boxes.shape == (0, 4)


def test_a_nan_box_is_a_detection():
    boxes = torch.tensor([[math.nan, 1, 5, 9], [-20, 1, -3, 9]])
    size = torch.tensor([[20, 400]])
    (results,) = postprocess(boxes_as_predictions(boxes, torch.tensor([0.9, 0.8])), size, size, **LIMITS)
    assert results.scores.tolist() == pytest.approx([0.9]) and results.boxes.isnan().any()


def test_a_nan_box_changes_no_other_image():
    image, broken = levels_of((5, 6), 0), levels_of((5, 6), 1)
    broken[0][1][2, 3] = math.nan
    expected = detect([image], [(5, 6)], (5, 6))[0]
    assert_same(detect([broken, image], [(5, 6)] * 2, (5, 6))[1], expected)


def test_without_images_anchors_or_classes():
    for shape in ((0, 6, 3), (2, 0, 3), (2, 6, 0)):
        num_images, num_anchors, _ = shape
        anchors = torch.tensor([[0.0, 0, 8, 8]]).repeat(num_anchors, 1)
        predictions = Predictions(
            torch.zeros(shape), torch.zeros(*shape[:2], 4), Priors(anchors, (num_anchors, 0)), DELTAS
        )
        sizes = torch.full((num_images, 2), 16)
        results = postprocess(predictions, sizes, sizes, **LIMITS)
        assert [detections.boxes.shape for detections in results] == [(0, 4)] * num_images


@pytest.mark.parametrize("share", [1.0, 0.02])
def test_nan_scores_are_detections(share: float):
    """All logits are NaN, or 2 % of them."""
    image = levels_of((5, 6), 0)
    logits = image[0][0]
    logits[torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)) < share] = torch.nan
    (results,) = detect([image], [(5, 6)], (5, 6))
    assert results.scores.isnan().any()
