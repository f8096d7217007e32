"""The weights of the foreground rows in the box terms, and the term of the box quality, against loops in float64."""

import math
from dataclasses import replace

import pytest
import torch
from criteria import criterion_of_losses, make_targets

from detector.core.structures import IGNORED, Predictions, Priors, Targets
from detector.geometry.coders import DistanceCoder
from detector.losses import BOX_LOSSES, CLASSIFICATION_LOSSES
from detector.losses.box_quality import centerness
from detector.losses.criterion import Criterion

K = 3
POINTS = torch.tensor([[x, y, x + 8.0, y + 8.0] for y in (0, 8, 16) for x in (0, 8, 16)])


def make_criterion(box_rows: str = "equal", normaliser: str = "global", **more) -> Criterion:
    losses = CLASSIFICATION_LOSSES.build("focal"), BOX_LOSSES.build("l1")
    return criterion_of_losses(*losses, K, box_rows=box_rows, normaliser=normaliser, **more)


def draw() -> tuple[Predictions, Targets]:
    """Return two images with 3 and 5 foreground rows. The quality of the other rows is NaN."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([[0, 1, 2, K, K, K, K, K, IGNORED], [2, 2, 1, 0, 1, K, K, K, K]])
    logits, raw = torch.randn(2, 9, K, generator=generator), torch.rand(2, 9, 4, generator=generator) * 2
    boxes = DistanceCoder().decode(torch.rand(2, 9, 4, generator=generator) * 2, POINTS)
    quality = torch.rand(2, 9, generator=generator).masked_fill((labels < 0) | (labels == K), math.nan)
    predictions = Predictions(
        logits.requires_grad_(),
        raw.requires_grad_(),
        Priors(POINTS, (9,)),
        DistanceCoder(),
        torch.randn(2, 9, generator=generator).requires_grad_(),
    )
    return predictions, replace(make_targets(labels, boxes), quality=quality)


def distances(box: list[float], point: list[float]) -> list[float]:
    x, y = (point[0] + point[2]) / 2, (point[1] + point[3]) / 2
    return [(x - box[0]) / 8, (y - box[1]) / 8, (box[2] - x) / 8, (box[3] - y) / 8]


def rows_of(image: int, predictions: Predictions, targets: Targets) -> list[tuple[float, float, float]]:
    """Return the L1 distance, the quality and the highest score of each foreground row of an image."""
    rows = []
    for i, label in enumerate(targets.labels[image].tolist()):
        if 0 <= label < K:
            expected = distances(targets.boxes[image, i].tolist(), POINTS[i].tolist())
            l1 = sum(abs(a - b) for a, b in zip(predictions.raw[image, i].tolist(), expected, strict=True))
            score = max(1 / (1 + math.exp(-x)) for x in predictions.logits[image, i].tolist())
            rows.append((l1, float(targets.quality[image, i]), score))
    return rows


@pytest.mark.parametrize("normaliser", ["global", "image"])
@pytest.mark.parametrize("box_rows", ["equal", "quality", "score"])
def test_box_terms_are_weighted(box_rows: str, normaliser: str):
    """`equal` and `quality` divide by the sum of the qualities, and `score` by the sum of the scores."""
    predictions, targets = draw()
    targets = replace(targets, quality=targets.quality.nan_to_num(0))
    criterion = make_criterion(box_rows, normaliser, box_weight=2.0)
    terms = criterion(predictions, targets, criterion.normalise(criterion.count_foreground([targets])))
    images = [rows_of(image, predictions, targets) for image in range(2)]
    groups = images if normaliser == "image" and box_rows != "score" else [images[0] + images[1]]
    expected = 0.0
    for rows in groups:
        weights = {"equal": [1.0] * len(rows), "quality": [q for _, q, _ in rows], "score": [s for *_, s in rows]}
        total = sum(weight * l1 for weight, (l1, *_) in zip(weights[box_rows], rows, strict=True))
        divisor = weights["score"] if box_rows == "score" else weights["quality"]
        expected += total / max(1, sum(divisor)) / len(groups)
    assert terms.weighted["box"].item() == pytest.approx(2 * expected, rel=1e-5)
    terms.weighted["box"].backward()
    assert predictions.logits.grad is None  # the weights have no gradient
    is_fg = (targets.labels >= 0) & (targets.labels < K)
    assert torch.equal(predictions.raw.grad.any(dim=-1), is_fg)


@pytest.mark.parametrize("box_rows", ["quality", "score"])
def test_no_foreground_has_no_box_loss(box_rows: str):
    predictions, targets = draw()
    targets = replace(targets, labels=torch.full_like(targets.labels, K), quality=None)
    terms = make_criterion(box_rows, box_quality="iou")(predictions, targets, 0)
    terms.total().backward()
    assert terms.weighted["box"] == 0 and terms.weighted["quality"] == 0
    assert predictions.raw.grad.isfinite().all() and not predictions.raw.grad.any()


@pytest.mark.parametrize("normaliser", ["global", "image"])
@pytest.mark.parametrize("kind", ["centerness", "iou"])
def test_the_quality_term(kind: str, normaliser: str):
    predictions, targets = draw()
    targets = replace(targets, quality=None)
    criterion = make_criterion(normaliser=normaliser, box_quality=kind)
    terms = criterion(predictions, targets, criterion.normalise(criterion.count_foreground([targets])))
    losses: list[list[float]] = [[], []]
    for image in range(2):
        for i, label in enumerate(targets.labels[image].tolist()):
            if 0 <= label < K:
                a, b = targets.boxes[image, i].tolist(), predictions.boxes[image, i].tolist()
                left, top, right, bottom = distances(a, POINTS[i].tolist())
                quality = math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
                if kind == "iou":
                    overlap = [min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
                    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
                    inside = max(0, overlap[0]) * max(0, overlap[1])
                    quality = inside / (sum(areas) - inside)
                p = 1 / (1 + math.exp(-predictions.box_quality[image, i].item()))
                losses[image].append(-quality * math.log(p) - (1 - quality) * math.log(1 - p))
    expected = (sum(losses[0]) / 3 + sum(losses[1]) / 5) / 2 if normaliser == "image" else sum(map(sum, losses)) / 8
    assert terms.weighted["quality"].item() == pytest.approx(expected, rel=1e-5)
    terms.weighted["quality"].backward()
    assert predictions.raw.grad is None and predictions.box_quality.grad.any(dim=-1).all()


def test_centerness_by_hand():
    points = torch.tensor([[5.0, 5], [2, 5], [2, 1], [0, 5], [-3, 5]])
    expected = torch.tensor([1, math.sqrt(2 / 8), math.sqrt(2 / 8 / 9), 0, 0])
    torch.testing.assert_close(centerness(points, torch.tensor([0.0, 0, 10, 10])), expected)
