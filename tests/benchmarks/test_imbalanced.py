"""Classification at 1 : 578: the random data, the metrics against their definitions, and the trained remedies."""

import copy

import numpy as np
import pytest
import torch

from detector.benchmarks.imbalanced import (
    BACKGROUND,
    BATCH_SIZE,
    POSITIVE,
    REMEDIES,
    Remedy,
    confusion,
    draw,
    make_batches,
    make_centers,
    make_curve,
    make_model,
    run,
    train,
    trial,
)
from detector.core.errors import UserError

# ---- the data


def draws(size: int, *seeds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for each seed, the features and a mask of the rows that are labeled positive."""
    splits = [draw(size, np.random.default_rng(seed)) for seed in seeds]
    return [(features.double().numpy(), (labels == POSITIVE).numpy()) for features, labels in splits]


@pytest.mark.parametrize(("size", "positives"), [(60_000, 104), (579, 1), (284_807, 492)])
def test_the_ratio_equals_the_ratio_of_the_fraud_data(size: int, positives: int):
    features, labels = draw(size, np.random.default_rng(0))
    assert features.shape == (size, 30) and features.dtype == torch.float32 and labels.shape == (size,)
    assert labels.bincount().tolist() == [positives, size - positives]


def test_rows_are_a_function_of_the_seed():
    (a, _), (same, _), (other, _) = draws(5000, 3, 3, 4)
    assert (a == same).all() and not (a == other).any()


def test_the_distance_to_the_centers_separates_the_classes_and_a_plane_does_not():
    """The ROC-AUC of the least-squares plane is near 0.5. The ROC-AUC of the distances is high."""
    (features, positive), (test_features, test_positive) = draws(60_000, 0, 1)
    bias = np.ones((60_000, 1))
    plane, *_ = np.linalg.lstsq(np.hstack((features, bias)), positive.astype(float), rcond=None)
    assert abs(make_curve(np.hstack((test_features, bias)) @ plane, test_positive).roc_auc() - 0.5) < 0.15
    assert make_curve(nearness(test_features), test_positive).roc_auc() > 0.9


def nearness(features: np.ndarray) -> np.ndarray:
    """Return a number above 0 where a row is nearer to a center of positives than to the center of background."""
    nearest = np.min([((features - center) ** 2).sum(axis=1) for center in make_centers()], axis=0)
    return (features**2).sum(axis=1) - nearest


def test_some_labels_of_both_kinds_are_wrong():
    """52 of the 1036 rows labeled positive are background. The 52 rows after them are positives labeled background."""
    ((features, positive),) = draws(600_000, 0)
    is_near = nearness(features) > 0
    assert positive.sum() == 1036
    assert 0.92 < is_near[positive].mean() < 0.96
    assert is_near[1036 : 1036 + 52].mean() > 0.9 and is_near[1036 + 52 :].mean() < 0.05


# ---- the metrics, by their definitions, O(n^2)


def naive_roc_auc(scores, positive):
    pairs = [(a, b) for a in scores[positive] for b in scores[~positive]]
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def naive_average_precision(scores, positive):
    total = recall_before = 0
    for threshold in sorted(set(scores), reverse=True):
        counts = naive_counts(scores, positive, threshold)
        recall = counts["tp"] / (counts["tp"] + counts["fn"])
        total += (recall - recall_before) * counts["tp"] / (counts["tp"] + counts["fp"])
        recall_before = recall
    return total


def naive_counts(scores, positive, threshold):
    counts = dict.fromkeys(("tp", "fp", "fn", "tn"), 0)
    for score, true in zip(scores, positive, strict=True):
        counts[("t" if (score >= threshold) == true else "f") + ("p" if score >= threshold else "n")] += 1
    return counts


def naive_f1(scores, positive, threshold):
    counts = naive_counts(scores, positive, threshold)
    if not counts["tp"]:
        return 0
    precision, recall = (counts["tp"] / (counts["tp"] + counts[other]) for other in ("fp", "fn"))
    return 2 / (1 / precision + 1 / recall)


@pytest.mark.parametrize("levels", [3, 20, 10**9], ids=["many ties", "some ties", "no ties"])
@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_their_definitions(levels: int, seed: int):
    rng = np.random.default_rng(seed)
    positive = rng.random(60) < 0.2
    positive[:2] = True, False
    scores = rng.integers(0, levels, 60) + positive * rng.integers(0, levels, 60) - levels / 2
    curve = make_curve(scores, positive)
    assert curve.roc_auc() == pytest.approx(naive_roc_auc(scores, positive), rel=1e-12)
    assert curve.average_precision() == pytest.approx(naive_average_precision(scores, positive), rel=1e-12)
    by_threshold = {t: naive_f1(scores, positive, t) for t in set(scores)}
    best = max(by_threshold.values())
    assert curve.best_threshold() == max(t for t, f1 in by_threshold.items() if f1 > best - 1e-12)
    for threshold in (*sorted(set(scores))[::5], 0.0):
        metrics = confusion(scores, positive, threshold)
        assert metrics.items() >= naive_counts(scores, positive, threshold).items()
        assert metrics["f1"] == pytest.approx(naive_f1(scores, positive, threshold), rel=1e-12)
        assert metrics["precision"] * (metrics["tp"] + metrics["fp"]) == pytest.approx(metrics["tp"], rel=1e-12)
        assert metrics["recall"] * positive.sum() == pytest.approx(metrics["tp"], rel=1e-12)


def test_metrics_by_hand():
    """In the order positive, background, positive, background, 3 of 4 pairs are correct. Precisions are 1 and 2/3."""
    scores, positive = np.array([0.1, 0.7, 0.9, 0.4]), np.array([False, False, True, True])
    curve = make_curve(scores, positive)
    assert curve.roc_auc() == 3 / 4 and curve.average_precision() == pytest.approx(5 / 6)
    assert curve.best_threshold() == 0.4  # F1 2/3, 1/2, 4/5, 2/3
    equal = make_curve(np.zeros(4), np.array([False, False, False, True]))
    assert equal.roc_auc() == 1 / 2 and equal.average_precision() == 1 / 4


def test_precision_is_0_without_detected_rows():
    metrics = confusion(np.array([-1.0, -2.0]), np.array([True, False]), 0.0)
    assert metrics == {"tp": 0, "fp": 0, "fn": 1, "tn": 1, "precision": 0, "recall": 0, "f1": 0}


# ---- the batches


def batches_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Count the uses of each of 30 positives and of each of 17,378 background rows, in four epochs of 17 batches."""
    labels = np.repeat((BACKGROUND, POSITIVE), (17 * BATCH_SIZE - 30, 30))
    batches = make_batches(REMEDIES[name], labels, 4 * 17, np.random.default_rng(0))
    assert batches.shape == (4 * 17, BATCH_SIZE)
    counts = batches.flatten().bincount(minlength=len(labels)).numpy()
    return counts[-30:], counts[:-30]


def test_without_sampling_every_row_is_used_equally_often():
    positives, background = batches_of("cross entropy")
    assert (positives == 4).all() and (background == 4).all()


def test_under_sampling_uses_as_many_background_rows_as_positives():
    positives, background = batches_of("under-sampling")
    used = background[background > 0]
    assert len(used) == 30 and {*positives, *used} == {1160, 1161}  # 4 * 17 * 1024 / 60


def test_over_sampling_uses_both_classes_equally_often_and_alternates_between_background_rows():
    positives, background = batches_of("over-sampling")
    assert abs(positives.sum() - background.sum()) <= 4
    assert positives.min() >= 4 * 290 and positives.max() <= 4 * 291  # 17 * 1024 / 2 / 30 an epoch
    assert background.max() <= 4 and (background > 0).mean() > 0.9  # two epochs use different halves of the background


def test_every_remedy_starts_from_the_same_weights_and_the_prior():
    state = torch.get_rng_state()
    a, same, other = (make_model(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[k], same[k]) for k in a) and not torch.equal(a["0.weight"], other["0.weight"])
    assert a["4.bias"].sigmoid().item() == pytest.approx(0.01)


# ---- the training


@pytest.mark.slow
def test_numbers_depend_on_the_seed_alone():
    """The numbers are equal bit for bit after other trainings and with another state of PyTorch's generator."""
    names = ["over-sampling", "GHM-C, power 1", "rank and sort", "OHEM"]
    first = trial({name: REMEDIES[name] for name in names}, seed=1, size=12_000, steps=30)
    torch.manual_seed(99)
    again = trial({name: REMEDIES[name] for name in reversed(names)}, seed=1, size=12_000, steps=30)
    other = trial({"OHEM": REMEDIES["OHEM"]}, seed=2, size=12_000, steps=30)
    assert first == again and other["OHEM"]["ap"] != first["OHEM"]["ap"]


def test_half_the_loss_trains_the_same_network():
    """The scale of a loss has no effect. Focal loss with gamma 0 and alpha 1/2 is half of cross entropy."""
    features, labels = draw(12_000, np.random.default_rng(0))
    batches = make_batches(Remedy(), labels.numpy(), 30, np.random.default_rng(0))
    initial, trained = make_model(0), []
    for remedy in (Remedy(), Remedy("focal", {"alpha": 0.5, "gamma": 0.0})):
        trained.append(copy.deepcopy(initial))
        train(trained[-1], remedy, features, labels, batches)
    with torch.no_grad():
        before, a, b = (model(features) for model in (initial, *trained))
    assert (a - before).abs().mean() > 100 * (a - b).abs().mean()


def test_rows_are_means_and_standard_deviations_of_the_trials():
    trials = [trial(REMEDIES, seed=seed, size=6000, steps=3) for seed in range(3)]
    for row in run(seeds=3, size=6000, steps=3)["rows"]:
        values = {key: [float(t[row["name"]][key]) for t in trials] for key in trials[0]["focal"]}
        assert row.keys() == {"name", *values, *(f"{key}_std" for key in values)}
        for key, of_seeds in values.items():
            assert row[key] == pytest.approx(np.mean(of_seeds), rel=1e-12)
            assert row[f"{key}_std"] == pytest.approx(np.std(of_seeds, ddof=1), rel=1e-9, abs=1e-12)


def test_one_seed_has_no_standard_deviation():
    with pytest.raises(UserError, match="^seeds: 1 ") as error:
        run(seeds=1)
    assert "2" in error.value.remedy


@pytest.fixture(scope="module")
def short() -> dict[str, dict]:
    result = run(seeds=2, size=30_000, steps=250)
    assert result["benchmark"] == "imbalanced" and result["imbalance"] == "1:578"
    return {row["name"]: row for row in result["rows"]}


@pytest.mark.slow
def test_every_remedy_counts_every_row_and_is_better_than_chance(short: dict[str, dict]):
    assert list(short) == list(REMEDIES)
    for name, row in short.items():
        assert row["tp"] + row["fn"] == 52 and row["fp"] + row["tn"] == 30_000 - 52, name
        assert row["tp_std"] == row["fn_std"] and row["fp_std"] == row["tn_std"], name
        assert row["recall"] == pytest.approx(row["tp"] / 52), name
        assert row["ap"] > 3 * 52 / 30_000 and row["roc_auc"] > 0.75, name


@pytest.mark.slow
@pytest.mark.parametrize("balanced", ["weighted cross entropy", "under-sampling", "over-sampling"])
def test_balanced_classes_have_more_recall_and_less_precision_at_score_one_half(short: dict[str, dict], balanced: str):
    plain, row = short["cross entropy"], short[balanced]
    assert row["recall"] > plain["recall"] + 0.15 and row["precision"] < plain["precision"] / 2


@pytest.mark.slow
def test_the_best_threshold_removes_much_of_the_loss_of_precision(short: dict[str, dict]):
    """Balancing raises all scores. A threshold selected on the validation split corrects much of this shift."""
    for name in ("weighted cross entropy", "over-sampling"):
        assert short[name]["best_f1"] > 1.5 * short[name]["f1"], name


@pytest.mark.slow
def test_under_sampling_ranks_worst(short: dict[str, dict]):
    """Under-sampling drops nearly all background rows."""
    others = [row["ap"] for name, row in short.items() if name != "under-sampling"]
    assert short["under-sampling"]["ap"] < min(others) / 3
