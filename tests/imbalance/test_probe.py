"""The probe against loops over ten anchors made by hand, and against exact sorting."""

import json
import math
import tracemalloc

import pytest
import torch
from criteria import make_targets
from tiny import names_of_the_library, tiny_config

from detector.build import build_dataset, build_probe, build_trained_model, move_model
from detector.core.structures import Predictions, Priors, Targets
from detector.geometry.coders import DeltaCoder
from detector.imbalance.advisor import alpha_of_probe
from detector.imbalance.probe import NORM_BINS, SCORE_BINS, Probe
from detector.imbalance.probe_result import CumulativeLoss, ProbeResult
from detector.imbalance.vocabulary import GROUPS, AnchorCounts
from detector.losses import CLASSIFICATION_LOSSES

DELTAS = DeltaCoder()

# Ten anchors, one class: score, label (0 foreground, 1 background, -1 ignored)
ANCHORS = [
    *((0.97, 0), (0.62, 0), (0.04, 0)),
    *((0.001, 1), (0.02, 1), (0.05, 1), (0.3, 1), (0.7, 1), (0.95, 1)),
    (0.5, -1),
]


def batch_of(anchors) -> tuple[Predictions, Targets]:
    logits = torch.tensor([[math.log(p / (1 - p))] for p, _ in anchors])[None]
    boxes = torch.tensor([0.0, 0, 8, 8]).expand(len(anchors), 4)
    predictions = Predictions(logits, torch.zeros(1, len(anchors), 4), Priors(boxes, (len(anchors),)), DELTAS)
    return predictions, make_targets(torch.tensor([[label for _, label in anchors]]), boxes[None])


def focal(p: float, label: int) -> float:
    p_t, alpha = (p, 0.25) if label == 0 else (1 - p, 0.75)
    return -alpha * (1 - p_t) ** 2 * math.log(p_t)


def focal_slope(p: float, label: int) -> float:
    step = 1e-6
    logit = math.log(p / (1 - p))
    high, low = (focal(1 / (1 + math.exp(-(logit + d))), label) for d in (step, -step))
    return abs(high - low) / (2 * step)


def group(p: float, label: int) -> str:
    if label == 0:
        return "foreground_outlier" if 1 - p >= 0.9 else "foreground"
    return "background_outlier" if p >= 0.9 else "easy_background" if p < 0.1 else "hard_background"


@pytest.fixture(scope="module")
def ten() -> ProbeResult:
    probe = Probe({name: CLASSIFICATION_LOSSES.build(name) for name in ("focal", "cross_entropy")})
    probe.update(*batch_of(ANCHORS[:4]))  # the division into batches does not change the counts
    probe.update(*batch_of(ANCHORS[4:]))
    return probe.compute()


def test_counts_by_hand(ten):
    assert ten.rows == AnchorCounts(foreground=3, ignored=1, background=6)
    assert ten.elements == dict(zip(GROUPS, (2, 1, 3, 2, 1), strict=True))
    assert sum(ten.gradient_norm.foreground) == 3 and sum(ten.gradient_norm.background) == 6
    assert ten.gradient_norm.foreground[0] == 1  # the norm of score 0.97 is 0.03, below 1 / 30
    assert ten.gradient_norm.background[int(0.7 * NORM_BINS)] == 1
    # fg 0.97 0.62 0.04 against bg: 6 + 4 + 2 of 18 pairs
    assert ten.anchor_level.roc_auc == pytest.approx(12 / 18, abs=1e-6)


def test_shares_by_hand():
    probe = Probe({"focal": CLASSIFICATION_LOSSES.build("focal")})
    probe.update(*batch_of(ANCHORS))
    result = probe.compute().losses["focal"]
    counted = [(p, label) for p, label in ANCHORS if label >= 0]
    for kind, formula in (("loss", focal), ("gradient", focal_slope)):
        total = sum(formula(*a) for a in counted)
        for name in GROUPS:
            expected = sum(formula(*a) for a in counted if group(*a) == name) / total
            assert getattr(result, kind)[name] == pytest.approx(expected, rel=1e-4), (kind, name)
        expected = sum(formula(*a) for a in counted if a[1] == 0) / total
        assert getattr(result, f"{kind}_foreground") == pytest.approx(expected, rel=1e-4)
    total = sum(focal_slope(*a) for a in counted)
    for i in range(NORM_BINS):
        in_bin = [a for a in counted if int(abs(a[0] - (a[1] == 0)) * NORM_BINS) == i]
        assert result.reweighted[i] == pytest.approx(sum(focal_slope(*a) for a in in_bin) / total, rel=1e-4, abs=1e-9)
    for kind, label in (("foreground", 0), ("background", 1)):
        for i, mean in enumerate(getattr(result.loss_by_p, kind)):
            # divided by the number of foreground anchors, 3
            losses = [focal(*a) / 3 for a in counted if a[1] == label and int(a[0] * SCORE_BINS) == i]
            assert mean == pytest.approx(sum(losses) / len(losses), rel=1e-4) if losses else math.isnan(mean)


@pytest.mark.parametrize(("kind", "label"), [("foreground", 0), ("background", 1)])
def test_cumulative_curve_by_hand(kind, label):
    probe = Probe({"focal": CLASSIFICATION_LOSSES.build("focal")})
    probe.update(*batch_of(ANCHORS))
    curve = probe.compute().losses["focal"].cumulative[kind]
    losses = sorted(focal(*a) for a in ANCHORS if a[1] == label)
    assert curve.elements == pytest.approx([i / len(losses) for i in range(len(losses) + 1)])
    assert curve.loss == pytest.approx([sum(losses[:i]) / sum(losses) for i in range(len(losses) + 1)], abs=1e-6)


# Two foreground anchors, so that mining at 3 : 1 drops one of seven background anchors.
TEN = [(0.62, 0), (0.04, 0), *((p, 1) for p in (0.001, 0.02, 0.05, 0.15, 0.3, 0.7, 0.95)), (0.5, -1)]


def build_loss(name: str):
    parameters = {"equalized_focal": {"num_classes": 1}}
    return CLASSIFICATION_LOSSES.build(name, **parameters.get(name, {}))


@pytest.mark.parametrize("name", names_of_the_library(CLASSIFICATION_LOSSES))
def test_figures_of_every_loss_on_ten_anchors(name):
    """The reference sorts and sums the elements and the gradient of the loss in float64."""
    predictions, targets = batch_of(TEN)
    probe = Probe({name: build_loss(name)})
    probe.update(predictions, targets)
    result = probe.compute().losses[name]

    loss = build_loss(name).train()
    leaf = predictions.logits.double().requires_grad_()
    # every predicted box is its target, so the quality is 1
    settings = {"level_sizes": predictions.priors.level_sizes, "quality": torch.ones(1, 10)}
    loss(leaf, targets.labels, 2, **settings).backward()
    elements = loss.elements(leaf.detach(), targets.labels, **settings).flatten().tolist()
    gradients = leaf.grad.abs().flatten().tolist()

    for kind, label in (("foreground", 0), ("background", 1)):
        losses = sorted(value for value, (_, y) in zip(elements, TEN, strict=True) if y == label)
        curve = result.cumulative[kind]
        if sum(losses) == 0:
            assert curve == CumulativeLoss(elements=[], loss=[])
            continue
        # the losses of one bin are one point: equal losses, and all losses below 1e-12
        ends = [i for i in range(1, len(losses)) if losses[i] > max(1.01 * losses[i - 1], 2e-12)]
        ends = [0, *ends, len(losses)]
        assert curve.elements == pytest.approx([i / len(losses) for i in ends])
        assert curve.loss == pytest.approx([sum(losses[:i]) / sum(losses) for i in ends], abs=1e-6)
    assert sum(gradients) > 0
    for i, share in enumerate(result.reweighted):
        in_bin = [g for g, (p, y) in zip(gradients, TEN, strict=True) if y >= 0 and int(abs(p - (y == 0)) * 30) == i]
        assert share == pytest.approx(sum(in_bin) / sum(gradients), rel=1e-4, abs=1e-9)


def test_cumulative_curve_of_many_elements_equals_sorted_sums():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 100_000, 1, generator=generator) - 3
    labels = (torch.rand(1, 100_000, generator=generator) > 0.02).long()
    boxes = torch.tensor([0.0, 0, 8, 8]).expand(100_000, 4)
    probe = Probe({"focal": CLASSIFICATION_LOSSES.build("focal")})
    probe.update(
        Predictions(logits, torch.zeros(1, 100_000, 4), Priors(boxes, (100_000,)), DELTAS),
        make_targets(labels, boxes[None]),
    )
    curves = probe.compute().losses["focal"].cumulative
    for kind, label in (("foreground", 0), ("background", 1)):
        p = logits[0, :, 0].double().sigmoid()[labels[0] == label]
        p_t = p if label == 0 else 1 - p
        losses = (-((1 - p_t) ** 2) * p_t.log()).sort().values
        exact = torch.cat((torch.zeros(1), losses.cumsum(0) / losses.sum()))
        x = torch.tensor(curves[kind].elements, dtype=torch.float64) * len(losses)
        assert len(x) <= 200 and x[0] == 0 and x[-1] == len(losses)
        assert (exact[x.round().long()] - torch.tensor(curves[kind].loss)).abs().max() < 1e-3
        assert x.diff().min() > 0


def test_histograms_do_not_grow_with_the_images():
    probe = Probe({name: CLASSIFICATION_LOSSES.build(name) for name in ("focal", "ghm_c")})

    def size() -> int:
        tensors = [v for h in probe.losses.values() for v in vars(h).values() if torch.is_tensor(v)]
        return sum(t.numel() for t in (*tensors, probe.counts, probe.anchor_scores.counts))

    before = size()
    for _ in range(20):
        probe.update(*batch_of(ANCHORS))
    assert size() == before and probe.num_images == 20


def test_a_pass_over_more_images_takes_no_more_memory(tmp_path, monkeypatch):
    """For comparison, the detections that an evaluation collects would take 100 kB per image here."""
    entries = {name: CLASSIFICATION_LOSSES._entries[name] for name in names_of_the_library(CLASSIFICATION_LOSSES)}
    monkeypatch.setattr(CLASSIFICATION_LOSSES, "_entries", entries)  # other tests register losses without a function
    config = tiny_config(tmp_path, "evaluation.score_threshold=0.0", "evaluation.batch_size=2")
    full = build_dataset(config, "train")
    model, device, dtype = move_model(build_trained_model(config, full), config)

    def peak(dataset) -> int:
        run = build_probe(config, dataset, device, dtype)
        tracemalloc.start()
        probe = run(model)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert probe.num_images == len(dataset)
        return size

    part = full.evenly(6)
    peak(part)  # the first pass also allocates memory that stays
    assert peak(full) - peak(part) < 50_000


@pytest.mark.parametrize("labels", [(1, 1, 1), (-1, -1, -1), (0, 1, -1)], ids=str)
def test_every_loss_of_the_library_is_scored_with_and_without_objects(labels):
    probe = Probe({name: build_loss(name) for name in names_of_the_library(CLASSIFICATION_LOSSES)})
    probe.update(*batch_of(list(zip((0.2, 0.6, 0.9), labels, strict=True))))
    for name, result in probe.compute().losses.items():
        for kind in ("loss", "gradient"):
            shares = getattr(result, kind).values()
            total = sum(shares)
            assert total == pytest.approx(1, abs=1e-6) or total == 0, name
            assert all(share >= 0 for share in shares)
        if set(labels) == {-1}:
            assert sum(result.gradient.values()) == 0


def test_alpha_balances_the_gradients_of_the_elements():
    """Most background scores of a trained model are near 0, where the gradient changes by many orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    foreground = torch.randn(2_000, generator=generator) * 1.5 + 1
    background = torch.randn(200_000, generator=generator) * 1.5 - 7
    logits = torch.cat([foreground, background]).requires_grad_()
    is_fg = torch.arange(len(logits)) < len(foreground)
    probe = Probe({})
    probe.update(
        *batch_of([(float(p), int(p_is_bg)) for p, p_is_bg in zip(logits.detach().sigmoid(), ~is_fg, strict=True)])
    )
    result = probe.compute()
    for gamma in (0.5, 1.0, 2.0, 5.0):
        p_t = torch.where(is_fg, logits, -logits).sigmoid()
        (gradient,) = torch.autograd.grad((-((1 - p_t) ** gamma) * p_t.log()).sum(), logits)
        of_foreground, of_background = gradient.abs()[is_fg].sum(), gradient.abs()[~is_fg].sum()
        expected = of_background / (of_foreground + of_background)
        assert alpha_of_probe(result, gamma) == pytest.approx(float(expected), rel=0.03), gamma


@pytest.mark.parametrize("shape", [(0, 6, 1), (2, 0, 1)])
def test_without_images_or_anchors(shape: tuple[int, int, int]):
    probe = Probe({name: CLASSIFICATION_LOSSES.build(name) for name in ("focal", "ghm_c", "rank_sort", "ohem")})
    anchors = torch.tensor([[0.0, 0, 8, 8]]).repeat(shape[1], 1)
    predictions = Predictions(torch.zeros(shape), torch.zeros(*shape[:2], 4), Priors(anchors, (shape[1],)), DELTAS)
    probe.update(predictions, make_targets(torch.ones(shape[:2], dtype=torch.int64), torch.zeros(*shape[:2], 4)))
    result = probe.compute()
    assert result.rows == AnchorCounts(foreground=0, ignored=0, background=0)
    assert set(result.losses["focal"].gradient.values()) == {0.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_is_shown_and_raises_nothing(value: float):
    probe = Probe({name: CLASSIFICATION_LOSSES.build(name) for name in ("focal", "ghm_c", "rank_sort", "ohem")})
    predictions, targets = batch_of(ANCHORS)
    predictions.logits[0, 5] = value
    probe.update(predictions, targets)
    result = probe.compute()
    assert result.rows.background == 6
    text = json.dumps(result.to_json())
    assert json.dumps(ProbeResult.from_json(json.loads(text)).to_json()) == text
    assert math.isnan(result.losses["focal"].loss_foreground) == (value is math.nan)
