"""The losses on imbalanced classification without boxes or anchors.

The problem has two classes at 1 : 578, the ratio of the well-known credit-card fraud data (492 frauds among 284,807
transactions). The data are random and need no download.

Every remedy trains the same small network with a single sigmoid. The rows, initial weights, prior, optimizer, steps and
batch size are equal. AdamW is invariant to the scale of a loss, so a larger loss is no advantage.
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
CLUSTERS = 4  # clusters of positives, in pairs on opposite sides of the background
SHIFTED_FEATURES = 4  # features in which a cluster differs from the background
DISTANCE = 7.0  # between the centers of a cluster and the background, in standard deviations of the normal distribution
TAIL = 6  # degrees of freedom of Student's t, so that each class has outliers among the other class
WRONG_LABELS = 0.05  # fraction of the positives that are background; as many true positives are labeled background

HIDDEN = 32
PRIOR = 0.01
BATCH_SIZE = 1024
LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Remedy:
    """A remedy for the imbalance.

    loss: the registered name of the loss.
    parameters: the parameters of the loss.
    is_under_sampled: whether training uses only as many background rows as positives. The rows are selected once.
    sampler: the registered name of the sampler of the rows.
    """

    loss: str = "cross_entropy"
    parameters: dict = field(default_factory=dict)
    is_under_sampled: bool = False
    sampler: str = "uniform"


REMEDIES = {
    "cross entropy": Remedy(),
    "weighted cross entropy": Remedy(parameters={"alpha": BACKGROUND_PER_POSITIVE / (BACKGROUND_PER_POSITIVE + 1)}),
    "margin cross entropy": Remedy("margin_cross_entropy"),
    "focal": Remedy("focal"),
    "poly focal": Remedy("poly_focal"),
    "asymmetric": Remedy("asymmetric"),
    "GHM-C, power 1": Remedy("ghm_c", {"power": 1.0}),
    "GHM-C, power 0.5": Remedy("ghm_c", {"power": 0.5}),
    "OHEM": Remedy("ohem"),
    "rank and sort": Remedy("rank_sort"),  # trains the order of the scores, so score 0.5 has no meaning
    "under-sampling": Remedy(is_under_sampled=True),
    "over-sampling": Remedy(sampler="class_balanced"),
}


# ---- the data


def draw(size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return random features (size, 30) fp32 and labels (size,) int64, of which round(size / 579) are positive.

    x = t + c, where t is from a 30-dimensional Student's t around 0. For background c = 0. For a positive, c is a
    center from two pairs c, -c. The classes have the same mean, so no plane separates them.

    Args:
        size: the number of rows.
        rng: the random generator.
    """
    num_positive = round(size / (BACKGROUND_PER_POSITIVE + 1))
    num_wrong = round(WRONG_LABELS * num_positive)
    labels = np.full(size, BACKGROUND)
    labels[:num_positive] = POSITIVE
    true_positives = np.arange(num_wrong, num_positive + num_wrong)  # shifted, so that labels of both kinds are wrong
    features = rng.normal(size=(size, FEATURES)) * np.sqrt(TAIL / rng.chisquare(TAIL, size=(size, 1)))
    features[true_positives] += make_centers()[rng.integers(CLUSTERS, size=num_positive)]
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def make_centers() -> np.ndarray:
    """Return the centers of the positives, (4, 30). They do not depend on the seed, only the rows do."""
    rng = np.random.default_rng(0)
    centers = np.zeros((CLUSTERS, FEATURES))
    for pair in centers.reshape(-1, 2, FEATURES):
        direction = rng.normal(size=SHIFTED_FEATURES)
        shifted = rng.choice(FEATURES, SHIFTED_FEATURES, replace=False)
        pair[:, shifted] = np.outer((DISTANCE, -DISTANCE), direction / np.linalg.norm(direction))
    return centers


# ---- the metrics


def confusion(scores: np.ndarray, is_positive: np.ndarray, threshold: float) -> dict[str, float]:
    """Return tp, fp, fn, tn, precision, recall and f1. Precision is 0 where no row is detected.

    Args:
        scores: (N,) the score of each row.
        is_positive: (N,) bool.
        threshold: the lowest score of a detected row.
    """
    is_detected = scores >= threshold
    tp, fp = int((is_detected & is_positive).sum()), int((is_detected & ~is_positive).sum())
    fn, tn = int((~is_detected & is_positive).sum()), int((~is_detected & ~is_positive).sum())
    rates = {"precision": tp / max(tp + fp, 1), "recall": tp / (tp + fn), "f1": 2 * tp / (2 * tp + fp + fn)}
    return {"tp": tp, "fp": fp, "fn": fn, "tn": tn} | rates


# ---- training


def make_model(seed: int) -> nn.Sequential:
    """Return the untrained network with random weights from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), output := nn.Linear(HIDDEN, 1)
        )
    nn.init.constant_(output.bias, -math.log((1 - PRIOR) / PRIOR))
    return model


def make_batches(remedy: Remedy, labels: np.ndarray, steps: int, rng: np.random.Generator) -> Tensor:
    """Return the rows of each batch, (steps, BATCH_SIZE): consecutive epochs in the sampler's order.

    Args:
        remedy: the remedy, which has the sampler.
        labels: (N,) the labels of the rows.
        steps: the number of batches.
        rng: the random generator.
    """
    rows = np.arange(len(labels))
    if remedy.is_under_sampled:
        positives, background = np.flatnonzero(labels == POSITIVE), np.flatnonzero(labels == BACKGROUND)
        rows = np.concatenate((positives, rng.choice(background, len(positives), replace=False)))
    sampler = IMAGE_SAMPLERS.build(remedy.sampler, list(labels[rows, None]), 2)
    num_rows = steps * BATCH_SIZE
    order = np.concatenate([sampler.order(rng) for _ in range(math.ceil(num_rows / len(sampler)))])
    return torch.from_numpy(rows[order[:num_rows]]).view(steps, BATCH_SIZE)


def train(model: nn.Module, remedy: Remedy, features: Tensor, labels: Tensor, batches: Tensor) -> None:
    """Train the model in place.

    Args:
        model: the network.
        remedy: the remedy, which has the loss.
        features: (N, 30).
        labels: (N,).
        batches: (steps, BATCH_SIZE) the rows of each batch.
    """
    loss = CLASSIFICATION_LOSSES.build(remedy.loss, **remedy.parameters)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for rows in batches:
        # the normalizer is the batch size, because the number of positives in a batch is random and often 0
        loss(model(features[rows]), labels[rows], BATCH_SIZE).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def logits(model: nn.Module, features: Tensor) -> np.ndarray:
    """Return the logits of all rows, (N,) fp64.

    Logits have the order of the scores, without the ties of scores rounded to 1. Score 0.5 is logit 0.

    Args:
        model: the network.
        features: (N, 30).
    """
    return model(features)[:, 0].double().numpy()


def trial(remedies: dict[str, Remedy], *, seed: int, size: int, steps: int) -> dict[str, dict[str, float]]:
    """Return the metrics of each remedy on the test split.

    The remedies train on the training split. The best threshold is selected on the validation split.

    Args:
        remedies: the remedies by name.
        seed: the random seed of the data, the weights and the batches.
        size: the number of rows of each split.
        steps: the number of training steps.
    """
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
    """Train all remedies with several random seeds.

    A row of the result has the mean of each metric over the seeds, and its standard deviation under `..._std`. The
    metrics tp, fp, fn, tn, precision, recall and f1 are at score 0.5. best_f1 is at the threshold that is best on the
    validation split. roc_auc and ap (average precision) depend only on the order of the scores.

    Args:
        seeds: the number of seeds.
        size: the number of rows of each split.
        steps: the number of training steps.

    Raises:
        UserError: the number of seeds is less than 2.
    """
    if seeds < 2:
        raise UserError(f"seeds: {seeds} is too low for a standard deviation", "use --seeds 2 or more")
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
