"""What each check tests, against the two tests applied by other code."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import linregress, ttest_1samp

from rlhf_lightning.experiment.claims.chains import BestOf, Ordered
from rlhf_lightning.experiment.claims.contrasts import (
    Above,
    Below,
    Better,
    Decreasing,
    Equivalent,
    Greater,
    Increasing,
    LessSpread,
)
from rlhf_lightning.experiment.statistics.scores import MeasureScale

UP, DOWN = MeasureScale("m"), MeasureScale("m", higher_is_better=False)
RNG = np.random.default_rng(11)
VALUES = {arm: RNG.normal(mean, 1, size=7) for arm, mean in (("a", 2.0), ("b", 1.2), ("c", 0.0), ("d", -0.5))}


def p_above(values, bound=0.0):
    """One-sided p of the t test and of enumerated sign flips, whichever is larger."""
    excess = np.asarray(values) - bound
    flips = [np.dot(signs, excess) for signs in product((1, -1), repeat=len(excess))]
    return max(ttest_1samp(excess, 0, alternative="greater").pvalue, np.mean(np.array(flips) >= excess.sum() - 1e-12))


def minus(first, second):
    return VALUES[first] - VALUES[second]


@pytest.mark.parametrize(
    ("claim", "scale", "toward", "against"),
    [
        (Greater(measure="m", first="a", second="b"), DOWN, p_above(minus("a", "b")), p_above(minus("b", "a"))),
        (Better(measure="m", first="a", second="b"), UP, p_above(minus("a", "b")), p_above(minus("b", "a"))),
        (Better(measure="m", first="a", second="b"), DOWN, p_above(minus("b", "a")), p_above(minus("a", "b"))),
        (
            Better(measure="m", first="c", second="a", by=0.5),
            DOWN,
            p_above(minus("a", "c"), 0.5),
            p_above(minus("c", "a"), -0.5),
        ),
        (Above(measure="m", arm="a", value=1.5), DOWN, p_above(VALUES["a"], 1.5), p_above(-VALUES["a"], -1.5)),
        (Below(measure="m", arm="a", value=2.5), UP, p_above(-VALUES["a"], -2.5), p_above(VALUES["a"], 2.5)),
    ],
)
def test_claims_about_a_mean(claim, scale, toward, against):
    found = claim.p_values(VALUES, scale)
    assert (found.toward, found.against) == pytest.approx((toward, against))
    assert found.difference == pytest.approx(min(1, 2 * min(toward, against)))
    assert found.equivalent is None


def test_a_trend_is_the_slope_of_each_seed():
    claim = Increasing(measure="m", ordered=("d", "c", "b", "a"))
    slopes = [linregress(range(4), [VALUES[arm][seed] for arm in claim.ordered]).slope for seed in range(7)]
    assert claim.contrast(VALUES, UP).values == pytest.approx(slopes)
    assert claim.p_values(VALUES, UP).toward == pytest.approx(p_above(slopes))
    falling = Decreasing(measure="m", ordered=("d", "c", "b", "a")).p_values(VALUES, UP)
    assert falling.against == pytest.approx(p_above(slopes))


def test_a_spread_is_tested_by_distances_from_the_median():
    distances = {arm: abs(VALUES[arm] - sorted(VALUES[arm])[3]) for arm in "ab"}
    found = LessSpread(measure="m", first="a", second="b").p_values(VALUES, UP)
    assert found.toward == pytest.approx(p_above(distances["b"] - distances["a"]))


def test_an_order_holds_if_all_steps_do():
    claim = Ordered(measure="m", ordered=("a", "b", "c", "d"))
    steps = [("a", "b"), ("b", "c"), ("c", "d")]
    found = claim.p_values(VALUES, UP)
    assert found.toward == pytest.approx(max(p_above(minus(*step)) for step in steps))
    assert found.against == pytest.approx(min(1, 3 * min(p_above(-minus(*step)) for step in steps)))
    weakest = max(steps, key=lambda step: p_above(minus(*step)))
    assert claim.contrast(VALUES, UP).name == " − ".join(weakest)


def test_the_best_of_some_pays_for_the_choice():
    claim = BestOf(measure="m", candidates=("d", "a", "b"), rivals=("c",))
    found = claim.p_values(VALUES, UP)
    assert found.toward == pytest.approx(min(1, 3 * min(p_above(minus(arm, "c")) for arm in "abd")))
    assert found.against == pytest.approx(max(p_above(minus("c", arm)) for arm in "abd"))
    assert claim.contrast(VALUES, UP).name == "a − c"
    assert claim.smallest_p(7) == (3 * 2 / 2**7, None)


def test_the_best_must_beat_all_rivals():
    claim = BestOf(measure="m", candidates=("b",), rivals=("a", "c"))
    found = claim.p_values(VALUES, UP)
    assert found.toward == pytest.approx(p_above(minus("b", "a")))
    assert found.against == pytest.approx(2 * p_above(minus("a", "b")))


def test_equivalence_is_two_tests_at_the_margin():
    p = {sign: p_above(sign * minus("a", "b"), -3.0) for sign in (1, -1)}
    for claim in (Better, Equivalent):
        found = claim(measure="m", first="a", second="b", margin=3.0).p_values(VALUES, UP)
        assert found.equivalent == pytest.approx(max(p.values()))


def test_a_claim_of_equivalence_is_contradicted_beyond_the_margin_only():
    found = Equivalent(measure="m", first="a", second="c", margin=0.4).p_values(VALUES, UP)
    assert found.toward == pytest.approx(p_above(minus("a", "c"), 0.4))


def test_better_by_an_amount_has_no_equivalence():
    assert Better(measure="m", first="a", second="b", by=0.5, margin=1.0).equivalence_margin is None
