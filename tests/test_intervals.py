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


from rlhf_lightning.intervals import (
    clustered_wilson_interval,
    student_interval,
    student_quantile,
    welch_interval,
    wilson_interval,
)
