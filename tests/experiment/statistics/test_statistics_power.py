"""Numbers of seeds against statsmodels and tables."""

import math

import pytest
from scipy.stats import norm
from statsmodels.stats.power import TTestPower

from rlhf_lightning.experiment.statistics.power import (
    MoreSeeds,
    more_seeds,
    sd_interval,
    seeds_for_equivalence,
    seeds_to_detect,
)


@pytest.mark.parametrize("effect", [0.2, 0.4, 0.7])
@pytest.mark.parametrize("level", [0.05, 0.0125])
def test_seeds_to_detect_agree_with_statsmodels_from_15_on(effect, level):
    expected = TTestPower().solve_power(effect_size=effect, power=0.8, alpha=level, alternative="two-sided")
    assert expected > 15
    assert seeds_to_detect(3 * effect, 3.0, level=level) == math.ceil(expected)
    assert seeds_to_detect(-3 * effect, 3.0, level=level) == math.ceil(expected)


def test_seeds_to_detect_keep_to_the_floor_of_sign_flips():
    # 2 / 2⁵ is above .05, 2 / 2⁶ below; a quarter of the level takes 2 / 2⁸
    assert seeds_to_detect(20, 1.0, level=0.05) == 6
    assert seeds_to_detect(20, 1.0, level=0.0125) == 8


def test_where_one_sign_flip_may_pass_all_differences_must_have_one_sign():
    # six seeds: Φ(1.5)⁶ = .661; seven: level 3 / 2⁷, which is Student's test again
    assert norm.cdf(1.5) ** 6 == pytest.approx(0.661, abs=1e-3)
    assert seeds_to_detect(1.5, 1.0, level=0.05) == 7


def test_seeds_for_equivalence_are_those_of_two_tests_that_both_must_pass():
    # arms that are equal: each of the tests misses in a tenth, so that both pass in 0.8
    expected = TTestPower().solve_power(effect_size=0.5, power=0.9, alpha=0.05, alternative="larger")
    assert seeds_for_equivalence(1.0, 2.0, level=0.05) == math.ceil(expected)
    assert seeds_for_equivalence(1.0, 2.0, difference=0.5, level=0.05) > 2 * math.ceil(expected)


@pytest.mark.parametrize(
    "number",
    [
        seeds_to_detect(0.0, 1.0, level=0.05),
        seeds_to_detect(0.01, 1.0, level=0.05),
        seeds_for_equivalence(1.0, 1.0, difference=1.0, level=0.05),
    ],
)
def test_beyond_a_thousand_no_number_is_named(number):
    assert number == 1_001


def test_results_without_spread_need_no_more_than_the_floor():
    assert seeds_to_detect(0.1, 0.0, level=0.05) == 6


def test_interval_of_a_standard_deviation_by_hand():
    # χ² with 4 degrees of freedom: 11.1433 at .975 and 0.484419 at .025
    expected = (math.sqrt(4 / 11.1433), math.sqrt(4 / 0.484419))
    assert sd_interval(1.0, 5) == pytest.approx(expected, abs=1e-4)


def test_more_seeds_carry_the_range_of_the_spread():
    low, high = sd_interval(2.0, 5)
    plan = {2.0: 12, low: 4, high: 900}
    found = more_seeds(5, 2.0, plan.__getitem__)
    assert found == MoreSeeds(7, 1, 895)
    assert str(found) == "7 more seeds (1 to 895)"


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        (MoreSeeds(1, 1, 1_001), "1 more seed (1 to more than 1,000)"),
        (MoreSeeds(1_001, 900, 1_001), "more than 1,000 more seeds"),
    ],
)
def test_more_seeds_in_words(seeds, text):
    assert str(seeds) == text
