"""Tests of paired differences against enumeration, scipy and statsmodels."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel
from statsmodels.stats.weightstats import ttost_paired

from rlhf_lightning.experiment.statistics.paired import (
    p_equivalent,
    p_greater,
    paired_difference,
    sign_flip_floor,
    sign_flips_greater,
    student_greater,
)
from rlhf_lightning.experiment.statistics.scores import MeasureScale
from rlhf_lightning.experiment.statistics.spread import distances_from_median


def enumerated(differences):
    """One-sided p of all sign flips."""
    flips = [
        sum(sign * d for sign, d in zip(signs, differences, strict=True))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(total >= sum(differences) - 1e-12 for total in flips) / len(flips)


def test_sign_flips_by_hand():
    # of ±3 ± 1 ± 2 the sums 6, 4 and 2 are at least 3 + 1 − 2 = 2
    assert sign_flips_greater(np.array([3.0, 1.0, -2.0])) == pytest.approx(3 / 8)


@pytest.mark.parametrize("seeds", [2, 5, 9])
def test_sign_flips_are_exact(seeds):
    differences = np.random.default_rng(seeds).normal(0.3, 1, size=seeds)
    assert sign_flips_greater(differences) == pytest.approx(enumerated(differences))


def test_many_sign_flips_are_drawn_at_random_and_repeatably():
    differences = np.random.default_rng(1).normal(0.3, 1, size=18)
    found = sign_flips_greater(differences)
    assert found == pytest.approx(enumerated(differences), abs=0.01)
    assert found == sign_flips_greater(differences)


def test_rows_are_tested_by_themselves():
    differences = np.random.default_rng(2).normal(size=(3, 6))
    found = p_greater(differences, than=0.2)
    assert found.shape == (3,)
    assert found == pytest.approx([p_greater(row, than=0.2) for row in differences])


def test_student_agrees_with_scipy():
    first, second = np.random.default_rng(4).normal(size=(2, 12))
    expected = ttest_rel(first, second + 0.1, alternative="greater").pvalue
    assert student_greater(first - second, than=0.1) == pytest.approx(expected)


@pytest.mark.parametrize(("value", "p"), [(0.5, 0.0), (0.2, 1.0), (0.1, 1.0)])
def test_differences_without_spread_decide_unless_they_are_what_is_tested(value, p):
    assert student_greater(np.full(4, value), than=0.2) == p


def test_fewer_than_two_pairs_show_nothing():
    assert p_greater(np.array([5.0])) == 1
    assert p_greater(np.array([])) == 1


def test_with_few_seeds_both_tests_must_hold():
    clear = np.array([1.0, 1.1, 0.9, 1.05, 0.95])
    assert student_greater(clear) < 1e-4
    assert p_greater(clear) == 2**-5 == sign_flip_floor(5)
    # one large difference: its sign flips say that 1 of 4 sums is as high, Student's test is not impressed
    odd = np.array([0.1, 0.2, 30.0, 0.1, 0.3])
    assert sign_flips_greater(odd) == 2**-5
    assert p_greater(odd) == student_greater(odd) > 0.1


def test_with_15_seeds_students_test_is_enough():
    differences = np.random.default_rng(6).normal(1, 1, size=15)
    assert p_greater(differences) == student_greater(differences)
    assert sign_flip_floor(15) == 0


def test_equivalence_agrees_with_statsmodels():
    first, second = np.random.default_rng(7).normal(0, 0.5, size=(2, 20))
    expected, *_ = ttost_paired(first, second, -0.4, 0.4)
    assert 1e-4 < expected < 0.5
    assert p_equivalent(first - second, margin=0.4) == pytest.approx(expected)


def test_paired_difference_reads_a_table():
    table = pd.DataFrame(
        {"arm": list("aaaaabbbbb"), "seed": [*range(5)] * 2, "score": [2.0, 4, 6, 8, 11, 1, 2, 3, 4, 5]}
    )
    found = paired_difference(table, MeasureScale("score"), "a", "b")
    assert found.seeds == (0, 1, 2, 3, 4)
    assert found.estimate.mean == pytest.approx(3.2)  # (1 + 2 + 3 + 4 + 6) / 5
    assert found.p_student == pytest.approx(ttest_rel([2.0, 4, 6, 8, 11], [1, 2, 3, 4, 5]).pvalue)
    assert found.p_sign_flips == found.floor == 0.0625


def test_distances_from_the_median_by_hand():
    values = np.array([[1.0, 2.0, 6.0], [5.0, 5.0, 8.0]])
    assert distances_from_median(values).tolist() == [[1, 0, 4], [0, 0, 3]]
