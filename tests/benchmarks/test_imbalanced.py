"""Classification at 1 : 578: the drawn problem, the metrics against their definitions, and what holds over seeds."""

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
    centres,
    confusion,
    draw,
    make_batches,
    make_curve,
    make_model,
    run,
    train,
    trial,
)
from detector.core.errors import UserError

# ---- the drawn problem


def draws(size: int, *seeds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Features and which rows are labelled positive, for each seed."""
    splits = [draw(size, np.random.default_rng(seed)) for seed in seeds]
    return [(features.double().numpy(), (labels == POSITIVE).numpy()) for features, labels in splits]


@pytest.mark.parametrize(("size", "positives"), [(60_000, 104), (579, 1), (284_807, 492)])
def test_the_ratio_is_that_of_the_fraud_data(size: int, positives: int):
    features, labels = draw(size, np.random.default_rng(0))
    assert features.shape == (size, 30) and features.dtype == torch.float32 and labels.shape == (size,)
    assert labels.bincount().tolist() == [positives, size - positives]


def test_rows_are_a_function_of_the_seed():
    (a, _), (same, _), (other, _) = draws(5000, 3, 3, 4)
    assert (a == same).all() and not (a == other).any()


def test_no_plane_separates_the_classes_but_distances_do():
    """The least-squares plane is near chance; the distances to the true centres are not."""
    (features, positive), (test_features, test_positive) = draws(60_000, 0, 1)
    one = np.ones((60_000, 1))
    plane, *_ = np.linalg.lstsq(np.hstack((features, one)), positive.astype(float), rcond=None)
    assert abs(make_curve(np.hstack((test_features, one)) @ plane, test_positive).roc_auc() - 0.5) < 0.15
    assert make_curve(nearness(test_features), test_positive).roc_auc() > 0.9


def nearness(features: np.ndarray) -> np.ndarray:
    """How much nearer a row is to a centre of positives than to the background's, above 0 if it is."""
    nearest = np.min([((features - centre) ** 2).sum(axis=1) for centre in centres()], axis=0)
    return (features**2).sum(axis=1) - nearest


def test_some_labels_are_wrong_on_either_side():
    """Of 1036 positives 52 are background; and the 52 rows after them are positives labelled background."""
    ((features, positive),) = draws(600_000, 0)
    near = nearness(features) > 0
    assert positive.sum() == 1036
    assert 0.92 < near[positive].mean() < 0.96
    assert near[1036 : 1036 + 52].mean() > 0.9 and near[1036 + 52 :].mean() < 0.05


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
        found = confusion(scores, positive, threshold)
        assert found.items() >= naive_counts(scores, positive, threshold).items()
        assert found["f1"] == pytest.approx(naive_f1(scores, positive, threshold), rel=1e-12)
        assert found["precision"] * (found["tp"] + found["fp"]) == pytest.approx(found["tp"], rel=1e-12)
        assert found["recall"] * positive.sum() == pytest.approx(found["tp"], rel=1e-12)


def test_metrics_by_hand():
    """Ranked positive, background, positive, background: 3 of 4 pairs are right; precision 1 and 2/3 at the hits."""
    scores, positive = np.array([0.1, 0.7, 0.9, 0.4]), np.array([False, False, True, True])
    curve = make_curve(scores, positive)
    assert curve.roc_auc() == 3 / 4 and curve.average_precision() == pytest.approx(5 / 6)
    assert curve.best_threshold() == 0.4  # F1 2/3, 1/2, 4/5, 2/3
    equal = make_curve(np.zeros(4), np.array([False, False, False, True]))
    assert equal.roc_auc() == 1 / 2 and equal.average_precision() == 1 / 4


def test_precision_is_0_where_nothing_is_found():
    found = confusion(np.array([-1.0, -2.0]), np.array([True, False]), 0.0)
    assert found == {"tp": 0, "fp": 0, "fn": 1, "tn": 1, "precision": 0, "recall": 0, "f1": 0}


# ---- what a network sees


def batches_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """In four epochs of 17 batches, how often each of the 30 positives and of the 17,378 background rows comes up."""
    labels = np.repeat((BACKGROUND, POSITIVE), (17 * BATCH_SIZE - 30, 30))
    batches = make_batches(REMEDIES[name], labels, 4 * 17, np.random.default_rng(0))
    assert batches.shape == (4 * 17, BATCH_SIZE)
    counts = batches.flatten().bincount(minlength=len(labels)).numpy()
    return counts[-30:], counts[:-30]


def test_every_row_comes_up_alike_without_sampling():
    positives, background = batches_of("cross entropy")
    assert (positives == 4).all() and (background == 4).all()


def test_under_sampling_keeps_as_many_background_rows_as_there_are_positives():
    positives, background = batches_of("under-sampling")
    kept = background[background > 0]
    assert len(kept) == 30 and {*positives, *kept} == {1160, 1161}  # 4 * 17 * 1024 / 60


def test_over_sampling_shows_both_classes_equally_often_and_all_of_the_background_in_turn():
    positives, background = batches_of("over-sampling")
    assert abs(positives.sum() - background.sum()) <= 4
    assert positives.min() >= 4 * 290 and positives.max() <= 4 * 291  # 17 * 1024 / 2 / 30 an epoch
    assert background.max() <= 4 and (background > 0).mean() > 0.9  # half of it an epoch, another half the next


def test_every_remedy_starts_from_the_same_weights_and_the_prior():
    state = torch.get_rng_state()
    a, same, other = (make_model(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[k], same[k]) for k in a) and not torch.equal(a["0.weight"], other["0.weight"])
    assert a["4.bias"].sigmoid().item() == pytest.approx(0.01)


# ---- trained


@pytest.mark.slow
def test_numbers_depend_on_the_seed_alone():
    """Bit for bit, whatever was trained before and however PyTorch's own generator stands."""
    names = ["over-sampling", "GHM-C", "rank and sort", "OHEM"]
    first = trial({name: REMEDIES[name] for name in names}, seed=1, size=12_000, steps=30)
    torch.manual_seed(99)
    again = trial({name: REMEDIES[name] for name in reversed(names)}, seed=1, size=12_000, steps=30)
    other = trial({"OHEM": REMEDIES["OHEM"]}, seed=2, size=12_000, steps=30)
    assert first == again and other["OHEM"]["ap"] != first["OHEM"]["ap"]


def test_half_the_loss_trains_the_same_network():
    """So the comparison is fair to small losses. Focal loss of gamma 0 and alpha 1/2 is half of cross entropy."""
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
    with pytest.raises(UserError, match="at least 2, not 1"):
        run(seeds=1)


@pytest.fixture(scope="module")
def short() -> dict[str, dict]:
    result = run(seeds=2, size=30_000, steps=250)
    assert result["benchmark"] == "imbalanced" and result["imbalance"] == "1:578"
    return {row["name"]: row for row in result["rows"]}


@pytest.mark.slow
def test_every_remedy_counts_every_row_and_beats_chance(short: dict[str, dict]):
    assert list(short) == list(REMEDIES)
    for name, row in short.items():
        assert row["tp"] + row["fn"] == 52 and row["fp"] + row["tn"] == 30_000 - 52, name
        assert row["tp_std"] == row["fn_std"] and row["fp_std"] == row["tn_std"], name
        assert row["recall"] == pytest.approx(row["tp"] / 52), name
        assert row["ap"] > 3 * 52 / 30_000 and row["roc_auc"] > 0.75, name


@pytest.mark.slow
@pytest.mark.parametrize("balanced", ["weighted cross entropy", "under-sampling", "over-sampling"])
def test_balancing_the_classes_trades_precision_for_recall_at_one_half(short: dict[str, dict], balanced: str):
    plain, row = short["cross entropy"], short[balanced]
    assert row["recall"] > plain["recall"] + 0.15 and row["precision"] < plain["precision"] / 2


@pytest.mark.slow
def test_what_a_remedy_wins_at_one_half_may_be_a_matter_of_the_threshold(short: dict[str, dict]):
    """Balanced scores are shifted up: a threshold chosen on a validation split makes up for much of it."""
    for name in ("weighted cross entropy", "over-sampling"):
        assert short[name]["best_f1"] > 1.5 * short[name]["f1"], name


@pytest.mark.slow
def test_under_sampling_ranks_worst(short: dict[str, dict]):
    """It throws away nearly all of the background."""
    others = [row["ap"] for name, row in short.items() if name != "under-sampling"]
    assert short["under-sampling"]["ap"] < min(others) / 3
