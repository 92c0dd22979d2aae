"""Verdicts on tables whose answer is plain."""

import math

import numpy as np
import pandas as pd
import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.claims.compared import compared
from rlhf_lightning.experiment.claims.contrasts import Better
from rlhf_lightning.experiment.claims.judging import Standing, judge
from rlhf_lightning.experiment.claims.reading import read_claims
from rlhf_lightning.experiment.claims.together import why_impossible
from rlhf_lightning.experiment.statistics.scores import MeasureScale

SCORE = MeasureScale("score")
NOISE = np.random.default_rng(0).normal(size=(4, 30))


def scores(seeds=10, **means):
    """Runs with the same noise per seed and a little of their own."""
    own = NOISE[: len(means), :seeds] * 0.1
    rows = [
        {"arm": arm, "seed": seed, "score": mean + NOISE[3, seed] + own[index, seed]}
        for index, (arm, mean) in enumerate(means.items())
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def verdicts(items, table, *, margin=None, scale=SCORE):
    arms = list(dict.fromkeys(table["arm"]))
    return judge(read_claims(items, arms=arms, measures=["score"], margin=margin), table, [scale])


@pytest.mark.parametrize(
    ("item", "words", "standing"),
    [
        ({"better": ["a", "b"]}, "better", Standing.HELD),
        ({"better": ["b", "a"]}, "worse", Standing.CONTRADICTED),
        ({"greater": ["a", "b"], "kind": "two-sided"}, "greater", None),
        ({"better": ["b", "c"], "margin": 0.5}, "equivalent", Standing.CONTRADICTED),
        ({"equivalent": ["b", "c"], "margin": 0.5}, "equivalent", Standing.HELD),
        ({"equivalent": ["b", "a"], "margin": 0.5}, "worse by the margin or more", Standing.CONTRADICTED),
        ({"better": ["a", "b"], "by": 0.5}, "better by at least 0.5", Standing.HELD),
        ({"better": ["a", "b"], "by": 1.5}, "not better by 1.5", Standing.CONTRADICTED),
        ({"order": ["a", "b", "c"], "kind": "report only"}, "reported only", None),
        ({"best_of": ["a", "b"], "better_than": ["c"]}, "one is better", Standing.HELD),
        ({"increasing": ["c", "b", "a"]}, "increasing", Standing.HELD),
        ({"above": {"arm": "a", "value": -3}}, "above", Standing.HELD),
        ({"below": {"arm": "a", "value": -3}}, "above", Standing.CONTRADICTED),
    ],
)
def test_a_plain_claim_is_decided(item, words, standing):
    found = verdicts([item], scores(a=1.0, b=0.0, c=0.0))[0]
    assert found.in_words() == words
    assert found.standing is standing
    assert found.seeds == tuple(range(10))
    assert found.more_seeds is None


def test_an_undecided_claim_says_how_many_seeds_would_decide():
    found = verdicts([{"better": ["b", "c"]}], scores(b=0.0, c=0.0), margin=0.02)[0]
    assert found.standing is Standing.UNDECIDED
    assert found.more_seeds.low < found.more_seeds.number < found.more_seeds.high
    assert found.in_words() == f"undecided: {found.more_seeds}"


def test_a_difference_below_the_margin_is_a_difference_and_is_said_to_be_small():
    found = verdicts([{"better": ["a", "b"]}], scores(a=0.5, b=0.0), margin=1.0)[0]
    assert found.in_words() == "better"
    assert found.notes == ("by less than the margin of 1",)


def test_claims_that_are_only_reported_do_not_count():
    table = scores(a=0.2, b=0.0, c=0.0)
    claims = [{"better": ["a", "b"]}, {"better": ["a", "c"], "kind": "report only"}]
    tested, reported = verdicts(claims, table)
    assert tested.adjusted_difference == tested.p_difference
    assert reported.adjusted_difference is None
    assert reported.verdict is None
    assert reported.low < reported.estimate < reported.high


def test_p_is_adjusted_for_the_other_claims():
    first, second = verdicts([{"better": ["a", "b"]}, {"better": ["c", "b"]}], scores(a=1.0, b=0.0, c=0.0))
    assert first.adjusted_difference == 2 * first.p_difference
    assert second.adjusted_difference == second.p_difference


def test_lower_is_better_where_the_measure_says_so():
    scale = MeasureScale("score", higher_is_better=False)
    found = verdicts([{"better": ["b", "a"]}], scores(a=1.0, b=0.0), scale=scale)[0]
    assert found.in_words() == "better"
    assert found.quantity == "b − a"
    assert found.estimate == pytest.approx(-1, abs=0.2)  # as measured


def test_five_seeds_cannot_decide_and_the_verdict_says_so():
    found = verdicts([{"better": ["a", "b"]}], scores(seeds=5, a=9.0, b=0.0))[0]
    assert found.p_difference == 0.0625
    assert found.in_words() == "undecided: 1 more seed (1 to 1)"
    assert found.notes == ("with 5 seeds no result is enough: over all claims, p is at least 0.0625",)


def test_a_failed_run_counts_and_a_missing_seed_is_named():
    table = scores(a=1.0, b=0.0)
    table.loc[(table["arm"] == "a") & (table["seed"] == 3), "score"] = math.nan
    table = table[~((table["arm"] == "b") & (table["seed"] == 7))]
    found = verdicts([{"better": ["a", "b"]}], table, scale=MeasureScale("score", worst=-50.0))[0]
    assert found.seeds == (0, 1, 2, 3, 4, 5, 6, 8, 9)
    assert found.notes[:2] == (
        "1 failed run of a counted as -50 (declared for failed runs)",
        "seed 7 left out: no run of b",
    )
    assert found.in_words().startswith("undecided")


@pytest.mark.parametrize("seeds", [0, 1])
def test_without_two_common_seeds_nothing_is_decided(seeds):
    table = pd.DataFrame({"arm": list("aab"), "seed": [1, 2, 2 if seeds else 3], "score": [1.0, 2.0, 3.0]})
    items = [{"better": ["a", "b"]}, {"less_spread": ["a", "b"]}, {"order": ["a", "b"]}]
    for found in verdicts(items, table):
        assert found.in_words() == "undecided"
        assert len(found.seeds) == seeds
        assert found.notes[-1] == "an interval and a test need at least two seeds that all its arms have"


def test_an_unknown_measure_is_refused():
    with pytest.raises(UserError, match="unknown measure 'scre': did you mean score"):
        judge([Better(measure="scre", first="a", second="b")], scores(a=1.0, b=0.0), [SCORE])


def test_why_impossible_names_the_claims_and_the_seeds_that_they_take():
    items = [{"better": ["a", "b"]}, {"equivalent": ["a", "c"], "margin": 1}, {"better": ["b", "c"]}]
    claims = read_claims(items, arms=["a", "b", "c"], measures=["score"])
    # three claims: 2 / 2ⁿ ≤ .05 / 3 from 7 on; equivalence is one-sided: 1 / 2ⁿ ≤ .05 / 3 from 6 on
    assert why_impossible(claims, 7) == []
    better, other = why_impossible(claims, 6)
    assert better.startswith("a is better than b: cannot be shown with 6 seeds")
    assert "at least 7 seeds are needed" in better
    assert other.startswith("b is better than c")
    assert "at least 6 seeds" in why_impossible(claims, 5)[1]
    assert why_impossible(claims, 15) == []


def test_a_choice_among_arms_takes_more_seeds():
    claims = read_claims([{"best_of": list("abc"), "better_than": ["d"]}], arms=list("abcd"), measures=["score"])
    # 3 · 2 / 2ⁿ ≤ .05 from 7 on
    assert "at least 7 seeds" in why_impossible(claims, 6)[0]
    assert why_impossible(claims, 7) == []


def test_every_arm_is_compared_with_the_baseline():
    found = compared(scores(a=1.0, b=0.0, c=0.0), SCORE, baseline="b", margin=0.5)
    assert [(one.claim.title, one.in_words()) for one in found] == [
        ("a is better than b", "better"),
        ("c is better than b", "equivalent"),
    ]
    assert found[0].standing is None


def test_all_pairs_are_compared_without_a_baseline():
    found = compared(scores(a=1.0, b=0.0, c=0.0), SCORE)
    assert [one.quantity for one in found] == ["a − b", "a − c", "b − c"]


@pytest.mark.parametrize(
    ("arms", "options", "message"),
    [
        ({"a": 1.0, "b": 0.0}, {"baseline": "c"}, "the baseline 'c' is no arm: arms are a, b"),
        ({"a": 1.0}, {}, "at least two arms"),
        ({"a": 1.0, "b": 0.0}, {"margin": 0.0}, "margin must be above 0"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(arms, options, message):
    with pytest.raises(UserError, match=message):
        compared(scores(**arms), SCORE, **options)
