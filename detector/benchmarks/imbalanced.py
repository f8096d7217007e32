"""The losses on plain imbalanced classification, without boxes or anchors: two classes at 1 : 578, the ratio of the
well-known credit-card fraud data (492 frauds among 284,807 transactions). The data are drawn; nothing is downloaded.

Every remedy trains the same small network with a single sigmoid: the same rows, initial weights, prior, optimiser,
steps and batch size. AdamW is indifferent to the scale of a loss, so that a remedy cannot win by a larger one.
"""

import copy
import math
import statistics
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from detector.core.errors import UserError
from detector.data import IMAGE_SAMPLERS
from detector.evaluation.curves import make_curve
from detector.losses import CLASSIFICATION_LOSSES

POSITIVE, BACKGROUND = 0, 1  # labels of a loss with one class
BACKGROUND_PER_POSITIVE = 578
FEATURES = 30
CLUSTERS = 4  # of the positives, in pairs on opposite sides of the background
SHIFTED_FEATURES = 4  # those by which a cluster differs from the background
DISTANCE = 7.0  # of a cluster's centre from the background's, in standard deviations before the tails
TAIL = 6  # degrees of freedom of Student's t: outliers of either class reach into the other
WRONG_LABELS = 0.05  # of the positives: so many are background, and so many true ones are labelled background

HIDDEN = 32
PRIOR = 0.01
BATCH_SIZE = 1024
LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Remedy:
    """A registered loss, and what the batches are drawn from."""

    loss: str = "cross_entropy"
    parameters: dict = field(default_factory=dict)
    under: bool = False  # of the background only one row a positive, chosen once
    sampler: str = "uniform"


REMEDIES = {
    "cross entropy": Remedy(),
    "weighted cross entropy": Remedy(parameters={"alpha": BACKGROUND_PER_POSITIVE / (BACKGROUND_PER_POSITIVE + 1)}),
    "margin cross entropy": Remedy("margin_cross_entropy"),
    "focal": Remedy("focal"),
    "poly focal": Remedy("poly_focal"),
    "asymmetric": Remedy("asymmetric"),
    "GHM-C": Remedy("ghm_c"),
    "OHEM": Remedy("ohem"),
    "rank and sort": Remedy("rank_sort"),  # only the order of its scores means anything, not 0.5
    "under-sampling": Remedy(under=True),
    "over-sampling": Remedy(sampler="class_balanced"),
}


# ---- the data


def draw(size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Features (size, 30) fp32 and labels (size,) int64, of which round(size / 579) are positive.

    x = t + c: t from a 30-dimensional Student's t around 0; c = 0 for the background, for a positive one of four
    centres that come in pairs c, -c. The positives' mean is thus the background's, and no plane separates them."""
    positives = round(size / (BACKGROUND_PER_POSITIVE + 1))
    wrong = round(WRONG_LABELS * positives)
    labels = np.full(size, BACKGROUND)
    labels[:positives] = POSITIVE
    truly_positive = np.arange(wrong, positives + wrong)  # shifted against the labels: `wrong` rows of each are not
    features = rng.normal(size=(size, FEATURES)) * np.sqrt(TAIL / rng.chisquare(TAIL, size=(size, 1)))
    features[truly_positive] += centres()[rng.integers(CLUSTERS, size=positives)]
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def centres() -> np.ndarray:
    """(4, 30), the same for every seed: seeds differ by the rows drawn, not by the problem."""
    rng = np.random.default_rng(0)
    found = np.zeros((CLUSTERS, FEATURES))
    for pair in found.reshape(-1, 2, FEATURES):
        direction = rng.normal(size=SHIFTED_FEATURES)
        shifted = rng.choice(FEATURES, SHIFTED_FEATURES, replace=False)
        pair[:, shifted] = np.outer((DISTANCE, -DISTANCE), direction / np.linalg.norm(direction))
    return found


# ---- the metrics


def confusion(scores: np.ndarray, positive: np.ndarray, threshold: float) -> dict[str, float]:
    """Counts and rates where a score of at least the threshold means positive; precision is 0 where none is."""
    found = scores >= threshold
    tp, fp = int((found & positive).sum()), int((found & ~positive).sum())
    fn, tn = int((~found & positive).sum()), int((~found & ~positive).sum())
    rates = {"precision": tp / max(tp + fp, 1), "recall": tp / (tp + fn), "f1": 2 * tp / (2 * tp + fp + fn)}
    return {"tp": tp, "fp": fp, "fn": fn, "tn": tn} | rates


# ---- training


def make_model(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), output := nn.Linear(HIDDEN, 1)
        )
    nn.init.constant_(output.bias, -math.log((1 - PRIOR) / PRIOR))
    return model


def make_batches(remedy: Remedy, labels: np.ndarray, steps: int, rng: np.random.Generator) -> Tensor:
    """(steps, BATCH_SIZE) rows: epochs in the sampler's order, one after the other, cut into batches."""
    rows = np.arange(len(labels))
    if remedy.under:
        positives, background = np.flatnonzero(labels == POSITIVE), np.flatnonzero(labels == BACKGROUND)
        rows = np.concatenate((positives, rng.choice(background, len(positives), replace=False)))
    sampler = IMAGE_SAMPLERS.build(remedy.sampler, list(labels[rows, None]), 2)
    needed = steps * BATCH_SIZE
    order = np.concatenate([sampler.order(rng) for _ in range(math.ceil(needed / len(sampler)))])
    return torch.from_numpy(rows[order[:needed]]).view(steps, BATCH_SIZE)


def train(model: nn.Module, remedy: Remedy, features: Tensor, labels: Tensor, batches: Tensor) -> None:
    loss = CLASSIFICATION_LOSSES.build(remedy.loss, **remedy.parameters)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for rows in batches:
        # A mean, the same for every batch: the number of its positives is chance, and often 0.
        loss(model(features[rows]), labels[rows], BATCH_SIZE).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def logits(model: nn.Module, features: Tensor) -> np.ndarray:
    """(N,) fp64. Their order is the scores', without the ties of scores rounded to 1; score 0.5 is logit 0."""
    return model(features)[:, 0].double().numpy()


def trial(remedies: dict[str, Remedy], *, seed: int, size: int, steps: int) -> dict[str, dict[str, float]]:
    """What each remedy scores on the test split, trained on another and its best threshold chosen on a third."""
    rng = np.random.default_rng((seed, 0))
    (features, labels), (val_features, val_labels), (test_features, test_labels) = (draw(size, rng) for _ in range(3))
    initial = make_model(seed)
    results = {}
    for name, remedy in remedies.items():
        model = copy.deepcopy(initial)
        batches = make_batches(remedy, labels.numpy(), steps, np.random.default_rng((seed, 1)))
        train(model, remedy, features, labels, batches)
        val = make_curve(logits(model, val_features), (val_labels == POSITIVE).numpy())
        test = logits(model, test_features), (test_labels == POSITIVE).numpy()
        curve = make_curve(*test)
        results[name] = confusion(*test, threshold=0.0) | {
            "best_f1": confusion(*test, threshold=val.best_threshold())["f1"],
            "roc_auc": curve.roc_auc(),
            "ap": curve.average_precision(),
        }
    return results


def run(*, seeds: int, size: int = 60_000, steps: int = 600) -> dict:
    """A row a remedy: each number's mean over the seeds, and under `..._std` its standard deviation.

    tp, fp, fn, tn, precision, recall, f1 at score 0.5; best_f1 at the threshold that is best on a validation split;
    roc_auc and ap (average precision) of the scores' order. `size` is the number of rows of each split."""
    if seeds < 2:
        raise UserError(f"seeds: a standard deviation needs at least 2, not {seeds}")
    trials = [trial(REMEDIES, seed=seed, size=size, steps=steps) for seed in range(seeds)]
    rows = []
    for name in REMEDIES:
        row: dict[str, str | float] = {"name": name}
        for key in trials[0][name]:
            values = [float(results[name][key]) for results in trials]
            row |= {key: statistics.mean(values), f"{key}_std": statistics.stdev(values)}
        rows.append(row)
    settings = {"imbalance": f"1:{BACKGROUND_PER_POSITIVE}", "seeds": seeds, "size": size, "steps": steps}
    return {"benchmark": "imbalanced", **settings, "batch_size": BATCH_SIZE, "prior": PRIOR, "rows": rows}
