import math

import numpy as np
import pytest
from scipy import stats

from detector.lab.study.statistics import holm, mean_interval, paired_p_value


def test_interval_of_three_by_hand():
    # s = 0.01, t(0.975, 2) = 4.302653: half = 4.302653 * 0.01 / sqrt(3)
    interval = mean_interval([0.30, 0.31, 0.32])
    assert interval.n == 3
    assert interval.mean == pytest.approx(0.31)
    assert interval.high - interval.mean == pytest.approx(0.0248414, rel=1e-5)
    assert interval.mean - interval.low == pytest.approx(0.0248414, rel=1e-5)


@pytest.mark.parametrize(("values", "mean"), [([], math.nan), ([0.4], 0.4)])
def test_too_few_values_have_no_interval(values, mean):
    interval = mean_interval(values)
    assert (interval.mean == mean) or (math.isnan(interval.mean) and math.isnan(mean))
    assert math.isnan(interval.low) and math.isnan(interval.high)


def test_the_interval_covers_the_true_mean_with_its_confidence():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(2.0, 3.0, 4)) for _ in range(2000)]
    covered = np.mean([interval.low <= 2.0 <= interval.high for interval in intervals])
    assert covered == pytest.approx(0.95, abs=0.015)  # three standard errors of 2,000 trials


def test_paired_p_value_equals_the_one_sample_test_of_the_differences():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.5, 0.1, (2, 6))
    assert paired_p_value(a, b) == pytest.approx(stats.ttest_1samp(a - b, 0).pvalue)
    # differences 1, 2, 3: t = 2 / (1 / sqrt(3)) = 3.4641, two-sided p with 2 degrees of freedom
    assert paired_p_value([1, 2, 3], [0, 0, 0]) == pytest.approx(0.0741799, rel=1e-5)


def test_paired_p_value_without_spread_or_pairs():
    assert paired_p_value([1.0, 2.0], [1.0, 2.0]) == 1
    assert paired_p_value([1.0, 2.0], [0.0, 1.0]) == 0
    assert math.isnan(paired_p_value([1.0], [0.5]))


def test_holm_by_hand():
    # sorted 0.01, 0.03, 0.04 times 3, 2, 1, and never below the value before
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_holm_does_not_count_tests_without_pairs():
    adjusted = holm([math.nan, 0.02, 0.5])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.04, 0.5])
