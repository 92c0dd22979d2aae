"""Kappas by hand, and against loops over the definitions."""

import itertools
import random

import pytest

from rlhf_lightning.reward_modeling.agreement import annotator_agreement
from rlhf_lightning.types import PreferencePair, Ranking, Rating


def judgement(item, label, annotator, swapped=False):
    """Item number ``item``, of which the first response (label 0) or the second (1) is preferred."""
    texts = [f"{item} a", f"{item} b"]
    return PreferencePair(f"q {item}", texts[label], texts[1 - label], annotator)


def judgements(table):
    """From labels by item and annotator."""
    return [judgement(item, label, who) for item, row in enumerate(table) for who, label in row.items()]


def fleiss_by_definition(rows):
    raters = len(rows[0])
    agreements, shares = [], [0, 0]
    for row in rows:
        agreements.append(sum(a == b for a, b in itertools.permutations(row, 2)) / (raters * (raters - 1)))
        for label in row:
            shares[label] += 1 / (raters * len(rows))
    chance = sum(share**2 for share in shares)
    return (sum(agreements) / len(rows) - chance) / (1 - chance)


def cohen_by_definition(common):
    observed = sum(a == b for a, b in common) / len(common)
    first, second = (sum(one[i] for one in common) / len(common) for i in (0, 1))
    chance = first * second + (1 - first) * (1 - second)
    return (observed - chance) / (1 - chance)


def test_fleiss_kappa_hand_computed():
    # Votes for the two responses: 3:0, 2:1, 0:3, 1:2. Of the 6 ordered couples of votes on an item agree 6, 2, 6, 2:
    # on average 16/24 = 2/3. Half of all votes are for each response, so chance gives 1/2: (2/3 − 1/2) / (1/2) = 1/3.
    table = [{"a": 0, "b": 0, "c": 0}, {"a": 0, "b": 0, "c": 1}, {"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 0, "c": 1}]
    found = annotator_agreement(judgements(table))
    assert found["fleiss_kappa"] == pytest.approx(1 / 3, abs=1e-4)
    assert (found["raters"], found["items"]) == (3, 4)
    # a and c differ on item 1 alone: observed 3/4, a says 1 in 2 of 4 and c in 3 of 4, chance 1/2·3/4 + 1/2·1/4 = 1/2
    by_pair = {(one["first"], one["second"]): one for one in found["cohen_kappa"]}
    assert by_pair["a", "c"]["kappa"] == pytest.approx((3 / 4 - 1 / 2) / (1 / 2))
    assert all(one["count"] == 4 for one in found["cohen_kappa"])
    assert list(by_pair) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_cohen_kappa_hand_computed():
    # both 0: 4, a 0 and b 1: 1, a 1 and b 0: 2, both 1: 3. Observed 7/10; a says 0 in 5 of 10, b in 6 of 10:
    # chance ½·6/10 + ½·4/10 = 1/2, kappa (7/10 − 1/2) / (1/2) = 0.4
    table = [(0, 0)] * 4 + [(0, 1)] + [(1, 0)] * 2 + [(1, 1)] * 3
    found = annotator_agreement(judgements([{"a": a, "b": b} for a, b in table]))
    assert found["cohen_kappa"] == [{"first": "a", "second": "b", "kappa": pytest.approx(0.4), "count": 10}]


def test_kappas_match_their_definitions_in_random_data():
    rng = random.Random(0)
    names = "abcde"
    table = [dict(zip(names, (rng.random() < 0.3 + 0.5 * (i % 2) for _ in names), strict=True)) for i in range(60)]
    table = [{who: int(label) for who, label in row.items()} for row in table]
    shuffled = judgements(table)
    rng.shuffle(shuffled)
    found = annotator_agreement(shuffled)
    assert found["fleiss_kappa"] == pytest.approx(fleiss_by_definition([list(row.values()) for row in table]), abs=1e-4)
    assert len(found["cohen_kappa"]) == 10
    for one in found["cohen_kappa"]:
        expected = cohen_by_definition([(row[one["first"]], row[one["second"]]) for row in table])
        assert one["kappa"] == pytest.approx(expected, abs=1e-5)


def test_fleiss_reads_the_items_with_the_most_common_number_of_judgements():
    twice = [{"a": 0, "b": 0}, {"a": 1, "b": 1}, {"a": 0, "b": 1}, {"a": 1, "b": 1}]
    thrice = [{"a": 0, "b": 1, "c": 0}, {"a": 1, "b": 1, "c": 0}]
    found = annotator_agreement(judgements([*twice, *thrice, {"a": 0}, {"d": 1}]))
    assert (found["raters"], found["items"]) == (2, 4)
    assert found["fleiss_kappa"] == pytest.approx(fleiss_by_definition([list(row.values()) for row in twice]), abs=1e-4)
    # Cohen's kappa takes all that both have judged; d has nothing in common with anyone
    by_pair = {(one["first"], one["second"]): one["count"] for one in found["cohen_kappa"]}
    assert by_pair == {("a", "b"): 6, ("a", "c"): 2, ("b", "c"): 2}
    found = annotator_agreement(judgements([*twice[:2], *thrice]))
    assert (found["raters"], found["items"]) == (3, 2)


def test_full_agreement_is_one_and_nothing_but_one_label_undefined():
    assert annotator_agreement(judgements([{"a": 0, "b": 0}, {"a": 1, "b": 1}]))["fleiss_kappa"] == pytest.approx(
        1, abs=1e-4
    )
    found = annotator_agreement(judgements([{"a": 0, "b": 0}] * 1 + [{"a": 0, "b": 0}]))
    assert found["fleiss_kappa"] is None
    assert found["cohen_kappa"][0]["kappa"] is None


def test_objectives_and_prompts_are_items_of_their_own():
    pairs = [
        PreferencePair("q", "x", "y", "a", objective="helpful"),
        PreferencePair("q", "y", "x", "b", objective="concise"),
        PreferencePair("p", "y", "x", "b", objective="helpful"),
    ]
    assert annotator_agreement(pairs) is None
    found = annotator_agreement([*pairs, PreferencePair("q", "y", "x", "b", objective="helpful")])
    assert found["cohen_kappa"][0]["count"] == 1


def test_rankings_judge_each_of_their_pairs():
    # agreed: x over z, y over z; not agreed: x over y
    found = annotator_agreement([Ranking("q", ("x", "y", "z"), "a"), Ranking("q", ("y", "x", "z"), "b")])
    assert found["items"] == found["cohen_kappa"][0]["count"] == 3
    pairs = [PreferencePair("q", *two, "a") for two in ("xy", "xz", "yz")]
    pairs += [PreferencePair("q", *two, "b") for two in ("yx", "xz", "yz")]
    assert annotator_agreement(pairs) == found
    # a ranking and a pair of the same two responses are the same item
    assert annotator_agreement([Ranking("q", ("x", "y"), "a"), PreferencePair("q", "x", "y", "b")])["items"] == 1


def test_what_is_not_judged_twice_gives_none():
    assert annotator_agreement([]) is None
    assert annotator_agreement(judgements([{"a": 0}, {"b": 1}])) is None
    assert annotator_agreement([judgement(0, 0, None), judgement(0, 0, None), judgement(0, 1, "a")]) is None
    assert annotator_agreement([judgement(0, 0, "a"), judgement(0, 1, "a")]) is None
    assert annotator_agreement([Rating("q", "x", {"rating": 1.0}, who) for who in "ab"]) is None


def test_first_of_several_judgements_by_one_annotator_counts():
    once = judgements([{"a": 0, "b": 0}, {"a": 1, "b": 1}])
    assert annotator_agreement([*once, judgement(0, 1, "a")]) == annotator_agreement(once)
