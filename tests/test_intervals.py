"""Confidence intervals against values computed by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from rlhf_lightning.intervals import (
    clustered_wilson_interval,
    student_interval,
    student_quantile,
    welch_interval,
    wilson_interval,
)


def test_wilson_interval_by_hand():
    # p = 0.8, z²/n = 4/10: middle (0.8 + 0.2) / 1.4, half √(0.8 · 0.2 · 0.4 + 0.4² / 4) / 1.4 = √0.104 / 1.4
    low, high = wilson_interval(8, 10, z=2.0)
    assert (low, high) == pytest.approx((0.714286 - 0.230350, 0.714286 + 0.230350), abs=1e-6)


def test_wilson_interval_is_for_95_percent_and_stays_between_0_and_1():
    assert wilson_interval(3.5, 10) == pytest.approx(wilson_interval(3.5, 10, z=1.959964), abs=1e-6)
    assert wilson_interval(0, 5)[0] == pytest.approx(0, abs=1e-12)
    # with no win the interval ends at z² / (n + z²) = 4 / 9
    assert wilson_interval(0, 5, z=2.0)[1] == pytest.approx(4 / 9)
    assert wilson_interval(5, 5, z=2.0) == pytest.approx((5 / 9, 1))


@pytest.mark.parametrize(
    ("level", "quantile"),
    [(0.95, 3.182446), (0.9, 2.353363)],  # t with 3 degrees of freedom at 0.975 and 0.95
)
def test_student_interval_by_hand(level, quantile):
    # mean 3; deviations −2, −1, 0, 3 with squares 14, so s² = 14 / 3 and s / √4 = 1.080123
    mean, half = student_interval([1.0, 2.0, 3.0, 6.0], level=level)
    assert mean == 3
    assert half == pytest.approx(quantile * 1.080123, abs=1e-5)


def test_student_interval_is_for_95_percent_unless_told_otherwise():
    # of 0 and 2: mean 1, s / √2 = √2 / √2 = 1, and t with 1 degree of freedom is 12.706205
    assert student_interval([0.0, 2.0]) == pytest.approx((1, 12.706205), abs=1e-5)


def test_student_interval_of_a_single_value_has_no_width():
    mean, half = student_interval([0.25])
    assert mean == 0.25
    assert math.isnan(half)


def test_welch_interval_by_hand():
    # means 3 and 1, variances 4 and 1, so the standard error is √(4/4 + 1/2) = √1.5 and the degrees of freedom
    # 1.5² / (1²/3 + 0.5²/1) = 3.857: four values √3 from their mean, two values √½ from theirs
    ours, theirs = [3 - 3**0.5, 3 - 3**0.5, 3 + 3**0.5, 3 + 3**0.5], [1 - 0.5**0.5, 1 + 0.5**0.5]
    difference, half = welch_interval(ours, theirs)
    assert difference == pytest.approx(2)
    assert half == pytest.approx(stats.t.ppf(0.975, 2.25 / (1 / 3 + 0.25)) * 1.5**0.5)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_welch_interval_as_scipy_has_it(level):
    ours, theirs = [0.8, 0.9, 0.7, 0.95, 0.84], [0.6, 0.65, 0.71]
    difference, half = welch_interval(ours, theirs, level=level)
    found = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(level)
    assert (difference - half, difference + half) == pytest.approx((found.low, found.high))


def test_welch_interval_of_values_that_never_vary_has_no_width():
    assert welch_interval([1.0, 1.0], [0.5, 0.5]) == (0.5, 0.0)


def test_the_quantile_is_the_half_width_in_standard_errors():
    # of 0 and 2: the standard error is 1, and t with one degree of freedom is 12.706 at 0.975
    assert student_quantile(2) == pytest.approx(student_interval([0.0, 2.0])[1]) == pytest.approx(12.7062, abs=1e-4)


def test_clustered_interval_of_single_observations_is_wilsons():
    assert clustered_wilson_interval([[1], [0.5], [0], [1]]) == wilson_interval(2.5, 4)
    assert clustered_wilson_interval([[1, 0, 0.5]]) == wilson_interval(0.5, 1)  # a single cluster tells no spread


def test_clustered_interval_by_hand():
    """Clusters (1, 1), (1, 0), (0, 0): p = ½, sums minus 2p are 1, 0, −1, variance 3/2 · 2 / 36 = 1/12, so 3 count."""
    assert clustered_wilson_interval([[1, 1], [1, 0], [0, 0]]) == pytest.approx(wilson_interval(1.5, 3))


def test_repeating_every_observation_adds_nothing_but_the_correction_of_the_variance():
    """20 clusters whose members all agree are worth 19 observations, since the variance is that of a sample."""
    clusters = [[float(i < 8)] * 5 for i in range(20)]
    assert clustered_wilson_interval(clusters) == pytest.approx(wilson_interval(0.4 * 19, 19))


def test_a_share_of_none_or_all_has_an_interval_of_as_many_observations_as_clusters():
    assert clustered_wilson_interval([[1, 1]] * 10) == wilson_interval(10, 10)
    assert clustered_wilson_interval([[0, 0, 0]] * 10) == wilson_interval(0, 10)


@pytest.mark.parametrize("concentration", [0.5, 4.0])
def test_clustered_interval_covers_the_share_in_95_of_100_cases(concentration):
    """Clusters with shares of their own, from a beta distribution of mean 0.7; Wilson's over all covers far less."""
    generator = np.random.default_rng(0)
    covered, naive = [], []
    for _ in range(1500):
        shares = generator.beta(0.7 * concentration, 0.3 * concentration, size=50)
        wins = (generator.random((50, 6)) < shares[:, None]).astype(float)
        low, high = clustered_wilson_interval(wins.tolist())
        covered.append(low <= 0.7 <= high)
        low, high = wilson_interval(wins.sum(), wins.size)
        naive.append(low <= 0.7 <= high)
    assert 0.93 <= np.mean(covered) <= 0.97
    assert np.mean(naive) < 0.9
