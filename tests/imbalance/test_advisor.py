import math
import re
from dataclasses import replace

import numpy as np
import pytest

from detector.core import wording
from detector.imbalance import advisor, census_readings
from detector.imbalance.advisor import Advice, alpha_of_probe, overlay
from detector.imbalance.balance import initial_alpha
from detector.imbalance.census_result import (
    AnchorSuggestion,
    Census,
    ClassCounts,
    Comparison,
    Distribution,
    ImageCounts,
    MatchCounts,
    Remedies,
)
from detector.imbalance.probe_result import Histogram, LossByScore, LossProbe, ProbeResult
from detector.imbalance.vocabulary import AnchorCounts

QUANTILES = Distribution(quantiles={"50": 9, "95": 20.5})
CENSUS = Census(
    num_images=100,
    num_objects=500,
    num_crowd=0,
    class_names=["a", "b"],
    anchors=AnchorCounts(foreground=1_000, ignored=500, background=99_000),
    ratio=99.0,
    by_level=[],
    by_class=[
        ClassCounts(name="a", objects=400, images=90, foreground=800, ignored=0, foreground_of_object=QUANTILES),
        ClassCounts(name="b", objects=100, images=40, foreground=200, ignored=0, foreground_of_object=QUANTILES),
    ],
    by_size=[],
    by_image=ImageCounts(
        background_per_foreground=QUANTILES,
        foreground=QUANTILES,
        objects=QUANTILES,
        images_without_objects=10,
        images_without_foreground=10,
    ),
    matches=MatchCounts(objects=500, unmatched=0, low_quality=5),
    anchor_suggestion=AnchorSuggestion(
        sizes=[[10.0], [20.0]],
        ratios=[1.0],
        recall=Comparison(now=0.99, suggested=0.995),
        mean_max_iou=Comparison(now=0.8, suggested=0.8),
    ),
    remedies=Remedies(prior=0.01, alpha={}, class_weights={"effective_number": [0.4, 1.6]}, repeat_factors={}),
)


def advise(census: Census, probe: ProbeResult | None = None, gamma: float = 2.0) -> list[Advice]:
    return advisor.advise(census, probe, gamma)


def change(**parts) -> Census:
    return replace(CENSUS, **parts)


def with_rare_class(images: int) -> Census:
    rare = replace(CENSUS.by_class[1], objects=20, images=images, foreground=30)
    return change(by_class=[CENSUS.by_class[0], rare])


def probe(outliers: float) -> ProbeResult:
    """Return a probe with 1,000 foreground elements at logit 1 and 200,000 background elements at logit -3.

    `outliers` is the outliers' share in the gradient of cross entropy.
    """
    nothing = LossByScore(p=[], background=[], foreground=[])
    return ProbeResult(
        split="val",
        num_images=100,
        rows=CENSUS.anchors,
        elements={},
        gradient_norm=Histogram(edges=[0, 0.1, 0.3, 1], foreground=[0, 1_000, 0], background=[200_000, 0, 0]),
        logits=Histogram(edges=[-4, -2, 0, 2], foreground=[0, 0, 1_000], background=[200_000, 0, 0]),
        losses={
            "cross_entropy": LossProbe(
                loss={},
                gradient={"foreground_outlier": outliers / 4, "background_outlier": outliers * 3 / 4},
                loss_foreground=0.5,
                gradient_foreground=0.5,
                cumulative={},
                reweighted=[],
                loss_by_p=nothing,
            )
        },
    )


def keys(advice: list[Advice]) -> list[str]:
    return [item.key for item in advice]


def numbers(advice: Advice) -> set[str]:
    """Return the numbers in the reason as text, percentages with their sign."""
    return numbers_in(advice.reason)


def numbers_in(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?%?", text))


def test_a_strong_imbalance_gets_focal_loss():
    (advice,) = advise(CENSUS)
    assert advice.key == "loss.classification"
    assert advice.value == {"type": "focal", "gamma": 2.0, "alpha": 0.25}
    first = initial_alpha(1_000, 199_000, 2.0, 0.01)
    # 100,000 rows of 2 classes with 1,000 foreground anchors: 199 elements and 99 anchors per foreground
    assert numbers(advice) >= {"199", "99", f"{first:.3g}"}


@pytest.mark.parametrize(("gamma", "alpha"), [(0.5, 0.5), (1.0, 0.25), (4.0, 0.25)])
def test_a_given_gamma_gets_its_alpha(gamma, alpha):
    (advice,) = advise(CENSUS, gamma=gamma)
    assert advice.value == {"type": "focal", "gamma": gamma, "alpha": alpha}
    (advice,) = advise(CENSUS, probe(0.1), gamma=gamma)
    balanced = alpha_of_probe(probe(0.1), gamma)
    assert advice.value["alpha"] == max(0.05, round(balanced, 3))
    assert numbers(advice) >= {f"{gamma:g}", f"{balanced:.3g}"}


def test_at_gamma_0_the_background_is_under_sampled():
    loss, sampler = advise(CENSUS, gamma=0.0)
    assert loss.value == {"type": "cross_entropy"} and sampler.key == "anchor_sampler"
    assert sampler.value == {"type": "random", "count": 42, "foreground_fraction": 0.5}  # 21 of each hold 95% of images
    assert numbers(sampler) >= {"42", "95%", "99"}
    mild = change(anchors=AnchorCounts(foreground=1_000, ignored=0, background=5_000))
    assert keys(advise(mild, gamma=0.0)) == ["loss.classification"]


def test_images_are_drawn_by_class_where_most_have_no_object():
    empty = change(by_image=replace(CENSUS.by_image, images_without_objects=60))
    _, sampler = advise(empty)
    assert sampler.key == "data.sampler" and sampler.value == {"type": "class_balanced"} and "60%" in numbers(sampler)


def test_a_mild_imbalance_needs_no_remedy():
    (advice,) = advise(change(anchors=AnchorCounts(foreground=1_000, ignored=0, background=5_000)))
    assert advice.value == {"type": "cross_entropy"}


def test_alpha_balances_the_gradients_on_the_trained_models_scores():
    def gradient(logit: float) -> float:
        g = 1 / (1 + np.exp(-logit))
        return g**2 * (g - 2 * (1 - g) * np.log(1 - g))

    alpha = alpha_of_probe(probe(0.1), 2.0)
    assert alpha * 1_000 * gradient(-1) == pytest.approx((1 - alpha) * 200_000 * gradient(-3))
    assert advise(CENSUS, probe(0.1))[0].value["alpha"] == round(alpha, 3)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("background", [5_000, 99_000])
def test_many_outliers_are_named_with_their_shares_and_do_not_change_the_loss(background: int, gamma: float):
    census = change(anchors=AnchorCounts(foreground=1_000, ignored=0, background=background))
    many, few, unknown = (advise(census, probe(share), gamma)[0] for share in (0.4, 0.2, math.nan))
    assert many.value == few.value and unknown == few
    # all outliers, the missed objects, and the high scores
    assert numbers(many) - numbers(few) >= {"40%", "10%", "30%"}


def test_alpha_stays_within_its_limits():
    crowded = probe(0.1)
    crowded.logits.foreground[2] = 1_000_000
    (advice,) = advise(CENSUS, crowded)
    assert advice.value["alpha"] == 0.05 and numbers(advice) >= {"0.05", "0.95"}


@pytest.mark.parametrize(
    ("images", "key"), [(10, "data.sampler"), (80, "loss.classification.class_weights")], ids=["separate", "shared"]
)
def test_a_rare_class_is_repeated_where_it_has_separate_images_and_else_weighted(images, key):
    advice = advise(with_rare_class(images))
    assert keys(advice) == ["loss.classification", key]
    if key == "data.sampler":  # sqrt(0.4 / 0.1) = 2
        assert advice[1].value == {"type": "repeat_factor", "threshold": 0.4}
    else:
        assert overlay(advice) == {
            "loss": {
                "classification": {"type": "focal", "gamma": 2.0, "alpha": 0.25, "class_weights": "effective_number"}
            }
        }


def test_class_weights_are_not_advised_without_a_loss():
    unmatched = AnchorCounts(foreground=0, ignored=0, background=9)
    assert advise(replace(with_rare_class(80), anchors=unmatched, anchor_suggestion=None)) == []


def test_anchors_that_miss_objects_are_replaced_by_fitting_ones():
    fit = replace(CENSUS.anchor_suggestion, recall=Comparison(now=0.7, suggested=0.9))
    advice = advise(change(anchor_suggestion=fit))
    assert overlay(advice)["model"] == {"head": {"sizes": [[10.0], [20.0]], "ratios": [1.0]}}


@pytest.mark.parametrize(
    ("matches", "value"),
    [
        (MatchCounts(objects=500, unmatched=50, low_quality=0), {"type": "max_iou", "low_quality": True}),
        (MatchCounts(objects=500, unmatched=0, low_quality=100), {"type": "atss"}),
    ],
)
def test_objects_without_good_anchors_get_another_assignment(matches, value):
    assert advise(change(matches=matches))[-1].value == value


def test_a_data_set_without_objects_gets_no_advice():
    empty = change(anchors=AnchorCounts(foreground=0, ignored=0, background=9), by_class=[], anchor_suggestion=None)
    assert advise(empty) == []


def test_the_readings_of_a_census_have_its_numbers_and_the_limits_of_the_advisor():
    census = change(matches=MatchCounts(objects=500, unmatched=15, low_quality=60))
    assert numbers_in(census_readings.read_matches(census)) == {"3%", "2%", "12%", "10%"}
    # of 100,500 anchors; 100,000 anchors with 2 classes have 199 background elements for each foreground element
    assert numbers_in(census_readings.read_anchors(census)) == {"10,000", "100", "50", "9,851"}
    grades = {}
    for background in (5_000, 99_000, 999_000):
        of_ratio = change(anchors=AnchorCounts(foreground=1_000, ignored=0, background=background))
        reading = census_readings.read_ratio(of_ratio)
        scores = f"{(2 * background + 1_000) // 1_000:,}"  # of the 2 classes
        assert {scores, wording.ratio(background / 1_000), "2", "20", "1,000"} == numbers_in(reading)
        grades[background] = next(grade for grade in ("mild", "strong", "severe") if f"is {grade}:" in reading)
    assert grades == {5_000: "mild", 99_000: "strong", 999_000: "severe"}


@pytest.mark.parametrize(("suggested", "is_better"), [(0.71, False), (0.9, True)])
def test_suggested_anchors_are_read_and_advised_only_if_they_fit_more_objects(suggested: float, is_better: bool):
    fit = replace(CENSUS.anchor_suggestion, recall=Comparison(now=0.7, suggested=suggested))
    assert (f"{suggested:.0%}" in numbers_in(census_readings.read_fit(fit))) == is_better
    assert ("model.head.sizes" in keys(advise(change(anchor_suggestion=fit)))) == is_better
