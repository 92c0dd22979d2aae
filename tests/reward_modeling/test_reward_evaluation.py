"""What held-out feedback says of a reward model, against hand-computed values and loops."""

import json
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

from rlhf_lightning.reward_modeling.evaluation import (
    JudgedComparisons,
    bias_statistics,
    comparison_statistics,
    correlations,
    evaluation_metrics,
    gold_correlations,
    halves,
    rating_statistics,
)
from rlhf_lightning.types import OVERALL, PreferencePair, Ranking, Rating

NAN = math.nan


def pair(prompt="p", chosen="a", rejected="b", **known):
    return PreferencePair(prompt, chosen, rejected, **known)


def judged_pairs(differences, **known):
    """Pairs with these differences of scores; what is known of them is a list each."""
    rows = [dict(zip(known, values, strict=True)) for values in zip(*known.values(), strict=True)]
    examples = [pair(f"p{n}", **row) for n, row in enumerate(rows or [{}] * len(differences))]
    return JudgedComparisons(examples, torch.tensor([[d + 3.0, 3.0] for d in differences]))


def breakdown(statistics, name):
    return [(row["name"], row["accuracy"], row["count"]) for row in statistics[name]]


DIFFERENCES = [1.0, -1.0, 0.0, 0.5, 2.0, -0.25]


# comparisons


def test_accuracy_loss_and_margin_by_hand():
    found = comparison_statistics(judged_pairs(DIFFERENCES))
    assert (found["pairs"], found["accuracy"]) == (6, (1 + 0 + 0.5 + 1 + 1 + 0) / 6)
    assert found["loss"] == pytest.approx(sum(math.log1p(math.exp(-d)) for d in DIFFERENCES) / 6)
    assert found["margin"] == pytest.approx(sum(DIFFERENCES) / 6)


def test_accuracy_has_a_wilson_interval():
    found = comparison_statistics(judged_pairs([1.0] * 7 + [-1.0] * 3))
    expected = stats.binomtest(7, 10).proportion_ci(0.95, method="wilson")
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx((expected.low, expected.high))


def test_accuracy_by_annotator_and_objective_by_hand():
    annotators = ["bo", "ana", "bo", None, "ana", "bo"]
    objectives = ["helpful", None, "helpful", "concise", None, None]
    found = comparison_statistics(judged_pairs(DIFFERENCES, annotator=annotators, objective=objectives))
    # ana: pairs 1 and 4; bo: pairs 0, 2 (a tie) and 5
    assert breakdown(found, "by_annotator") == [("ana", 0.5, 2), ("bo", 0.5, 3)]
    assert breakdown(found, "by_objective") == [("concise", 1.0, 1), ("helpful", 0.75, 2)]
    expected = stats.binomtest(1, 2).proportion_ci(0.95, method="wilson")
    assert (found["by_annotator"][0]["low"], found["by_annotator"][0]["high"]) == pytest.approx(tuple(expected))


def test_few_margins_are_groups_of_their_own():
    found = comparison_statistics(judged_pairs(DIFFERENCES, margin=[1.0, 1.0, 2.0, None, 2.5, 2.0]))
    assert breakdown(found, "by_margin") == [("1", 0.5, 2), ("2", 0.25, 2), ("2.5", 1.0, 1)]


def test_margins_that_differ_by_rounding_alone_are_one_group():
    found = comparison_statistics(judged_pairs([1.0, -1.0, 1.0], margin=[0.3, 0.30000001192, 0.29999998]))
    assert breakdown(found, "by_margin") == [("0.3", pytest.approx(2 / 3), 3)]


def test_many_margins_are_divided_into_groups_of_about_equal_size():
    margins = np.random.default_rng(0).permutation(100) / 10
    differences = np.random.default_rng(1).normal(size=100)
    found = comparison_statistics(judged_pairs(differences.tolist(), margin=margins.tolist()))
    expected = []
    for group in range(5):
        inside = (margins >= 2 * group) & (margins < 2 * group + 2)
        name = f"{2 * group} to {2 * group + 1.9:.3g}"
        expected.append((name, pytest.approx((differences[inside] > 0).mean()), 20))
    assert breakdown(found, "by_margin") == expected


def test_without_margins_gold_says_how_far_responses_are_apart():
    judged = judged_pairs(DIFFERENCES)
    judged.gold = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.5]])
    found = comparison_statistics(judged)
    # 1: pairs 0, 1 and 3; ½: pairs 2 and 5; 0: pair 4
    assert breakdown(found, "by_margin") == [("0", 1.0, 1), ("0.5", 0.25, 2), ("1", pytest.approx(2 / 3), 3)]
    assert comparison_statistics(judged_pairs(DIFFERENCES))["by_margin"] == []


def test_accuracy_by_length_difference_by_hand():
    texts = ["one two three", "one", "one two", "one two", "one two", ""]
    others = ["one", "one two three", "one two", "a b", "a", "one two"]
    found = comparison_statistics(judged_pairs(DIFFERENCES, chosen=texts, rejected=others))
    # words more: 2, −2, 0, 0, 1, −2
    assert breakdown(found, "by_length_difference") == [
        ("-2 words", 0.0, 2),
        ("0 words", 0.75, 2),
        ("1 words", 1.0, 1),
        ("2 words", 1.0, 1),
    ]


def test_a_ranking_gives_every_pair_that_it_implies():
    examples = [
        Ranking("p", ("a a", "b", "c c c"), annotator="ana", objective="helpful"),
        pair("q", "d", "e", annotator="bo", margin=2.0),
    ]
    judged = JudgedComparisons(examples, torch.tensor([[2.0, 0.5, 1.0], [0.0, 1.5, NAN]]))
    assert judged.pairs == [
        PreferencePair("p", "a a", "b", "ana", None, "helpful"),
        PreferencePair("p", "a a", "c c c", "ana", None, "helpful"),
        PreferencePair("p", "b", "c c c", "ana", None, "helpful"),
        PreferencePair("q", "d", "e", "bo", 2.0, None),
    ]
    assert judged.differences(judged.scores).tolist() == [1.5, 1.0, -0.5, -1.5]
    found = comparison_statistics(judged)
    assert (found["pairs"], found["accuracy"]) == (4, 0.5)
    assert breakdown(found, "by_annotator") == [("ana", pytest.approx(2 / 3), 3), ("bo", 0.0, 1)]


def test_gold_is_correlated_once_per_response_and_not_with_padding():
    examples = [Ranking("p", ("a", "b", "c")), pair("q"), pair("r")]
    scores = torch.tensor([[2.0, 0.5, 1.0], [0.0, 1.5, NAN], [3.0, -1.0, NAN]])
    gold = torch.tensor([[1.0, 0.0, 0.0], [0.5, 1.0, NAN], [2.0, 0.5, NAN]])
    found = comparison_statistics(JudgedComparisons(examples, scores, gold=gold))["correlation"]
    x, y = [2.0, 0.5, 1.0, 0.0, 1.5, 3.0, -1.0], [1.0, 0.0, 0.0, 0.5, 1.0, 2.0, 0.5]
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found["kendall"] == pytest.approx(stats.kendalltau(x, y).statistic)
    deviations = [np.concatenate([part - np.mean(part) for part in np.split(values, [3, 5])]) for values in (x, y)]
    assert found["within"] == pytest.approx(stats.pearsonr(*deviations).statistic)


def test_a_number_added_to_every_score_of_a_prompt_leaves_the_correlation_within_prompts():
    examples = [pair("p"), pair("q"), pair("r")]
    scores, gold = (
        torch.tensor([[2.0, 0.5], [0.0, 1.5], [3.0, -1.0]]),
        torch.tensor([[1.0, 0.0], [0.5, 1.0], [2.0, 0.5]]),
    )
    one, other = (
        comparison_statistics(JudgedComparisons(examples, scores + shift, gold=gold))["correlation"]
        for shift in (0, torch.tensor([[0.0], [5.0], [-3.0]]))
    )
    assert one["within"] == pytest.approx(other["within"])
    assert abs(one["pearson"] - other["pearson"]) > 0.3


def test_single_responses_have_no_correlation_within_prompts():
    scores, gold = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [3.0], [4.0]])
    found = gold_correlations(scores, gold, torch.ones(3, 1, dtype=torch.bool))
    assert found["pearson"] == pytest.approx(stats.pearsonr([1, 2, 4], [1, 3, 4]).statistic)
    assert found["within"] is None


def test_correlations_of_constants_are_not_known():
    assert correlations(torch.ones(4), torch.arange(4.0)) is None
    assert correlations(torch.arange(4.0), torch.ones(4)) is None
    assert correlations(torch.ones(1), torch.ones(1)) is None
    assert correlations(torch.arange(4.0), -torch.arange(4.0)) == pytest.approx(
        {"pearson": -1, "spearman": -1, "kendall": -1}
    )


def test_agreement_of_members_against_a_loop():
    members = torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(0)).round(decimals=0)
    examples = [pair(f"p{n}") for n in range(20)]
    found = comparison_statistics(JudgedComparisons(examples, members.mean(0), members))["members"]
    signs = np.sign((members[..., 0] - members[..., 1]).numpy())
    assert (signs == 0).any()
    agreed = []
    for first, second in combinations(range(3), 2):
        for n in range(20):
            a, b = signs[first, n], signs[second, n]
            agreed.append(1.0 if a == b else 0.5 if 0 in (a, b) else 0.0)
    assert found["agreement"] == pytest.approx(sum(agreed) / len(agreed))
    assert found["accuracy"] == pytest.approx([((s > 0) + (s == 0) / 2).mean() for s in signs])
    assert found["disagreement"] == pytest.approx(members.numpy().std(0).mean())


def test_temperature_is_fitted_on_the_prompts_of_the_other_half():
    # prompt a (first, third, ...): 3 of 4 right at size 2; prompt b: 4 of 5 right at size 1
    differences = [2.0, 2.0, 2.0, -2.0, 1.0, 1.0, 1.0, 1.0, -1.0]
    examples = [pair("a")] * 4 + [pair("b")] * 5
    found = comparison_statistics(JudgedComparisons(examples, torch.tensor([[d, 0.0] for d in differences])))
    # T of a is 2 / ln 3, T of b is 1 / ln 4: a states σ(2 ln 4) = 16/17, b states σ(ln 3 / 2) = √3/(1 + √3)
    stated = [(1 + math.sqrt(3)) ** -1 * math.sqrt(3), 16 / 17]
    assert [row["confidence"] for row in found["bins_scaled"]] == pytest.approx(stated, rel=1e-4)
    expected = (4 * abs(16 / 17 - 3 / 4) + 5 * abs(stated[0] - 4 / 5)) / 9
    assert found["calibration_error_scaled"] == pytest.approx(expected, rel=1e-4)
    assert 1 / math.log(4) < found["temperature"] < 2 / math.log(3)


def test_one_prompt_cannot_be_divided():
    found = comparison_statistics(JudgedComparisons([pair()] * 3, torch.tensor([[1.0, 0.0]] * 3)))
    assert found["calibration_error_scaled"] is None
    assert found["bins_scaled"] == []


def test_halves_keep_prompts_together():
    talk = [{"role": "user", "content": "x"}]
    assert halves(["a", "b", "a", talk, "c", list(talk), "b"]).tolist() == [0, 1, 0, 0, 1, 0, 1]


# ratings


def test_rating_statistics_by_hand():
    examples = [
        Rating("p", "a", {"helpful": 1.0, "concise": 0.0}),
        Rating("p", "b", {"concise": 2.0}),
        Rating("q", "c", {"helpful": 3.0, "concise": 1.0}),
        Rating("q", "d", {"helpful": 2.0}),
    ]
    scores = torch.tensor([[1.5, 0.0], [1.0, NAN], [2.0, 1.0], [2.0, NAN]])
    found = rating_statistics(examples, scores)
    # helpful: 1.5, 2, 2 for 1, 3, 2; concise: 0, 1, 1 for 0, 2, 1
    assert found["ratings"] == 6
    assert found["mean_squared_error"] == pytest.approx((0.25 + 1 + 0 + 0 + 1 + 0) / 6)
    concise, helpful = found["by_objective"]
    assert (concise["name"], concise["count"], helpful["name"], helpful["count"]) == ("concise", 3, "helpful", 3)
    assert (concise["mean_squared_error"], helpful["mean_squared_error"]) == pytest.approx((1 / 3, 1.25 / 3))
    assert helpful["correlation"]["pearson"] == pytest.approx(stats.pearsonr([1.5, 2, 2], [1, 3, 2]).statistic)
    everything = [1.5, 0.0, 1.0, 2.0, 1.0, 2.0], [1.0, 0.0, 2.0, 3.0, 1.0, 2.0]
    assert found["correlation_rating"]["spearman"] == pytest.approx(stats.spearmanr(*everything).statistic)


def test_ratings_all_in_all():
    found = rating_statistics([Rating("p", "a", {OVERALL: 1.0}), Rating("p", "b", {OVERALL: 2.0})], torch.ones(2, 1))
    assert [row["name"] for row in found["by_objective"]] == [OVERALL]
    assert found["mean_squared_error"] == 0.5
    assert found["correlation_rating"] is None


# biases


def length_of(prompts, responses):
    """A model that likes words, and every prompt as much as its length."""
    return torch.tensor([len(p) + len(r.split()) for p, r in zip(prompts, responses, strict=True)])


def test_bias_statistics_by_hand():
    probes = {
        "length": [("p", "a", "a b c"), ("pp", "a b", "a b c"), ("p", "a", "b a"), ("q", "a b", "a b")],
        "politeness": [("p", "a b", "b"), ("q", "a b", "a")],
        "empty": [],
    }
    length, politeness = bias_statistics(probes, length_of, spread=2.0)
    # 2, 1, 1, 0 words more, over 2: mean ½, standard deviation √(2/3)/2, over √4; a tie goes up half
    assert (length["name"], length["count"], length["change"], length["share_up"]) == ("length", 4, 0.5, 0.875)
    assert length["standard_error"] == pytest.approx(math.sqrt(2 / 3) / 2 / 2)
    assert politeness == {"name": "politeness", "change": -0.5, "standard_error": 0, "share_up": 0, "count": 2}


def test_a_constant_model_has_no_bias():
    def constant(prompts, responses):
        return torch.zeros(len(responses))

    (found,) = bias_statistics({"length": [("p", "a", "a b")] * 3}, constant, spread=0.0)
    assert (found["change"], found["standard_error"], found["share_up"]) == (0, 0, 0.5)


# metrics


def test_metrics_of_an_evaluation():
    judged = judged_pairs(DIFFERENCES)
    judged.gold = torch.arange(12.0).reshape(6, 2)
    judged.members = torch.stack([judged.scores, -judged.scores])
    evaluation = comparison_statistics(judged) | {"train": {"accuracy": 0.9, "loss": 0.1}, "ceiling": None}
    evaluation["biases"] = [{"name": "length", "change": 0.25}]
    found = evaluation_metrics(evaluation)
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
    assert found["eval/accuracy"] == evaluation["accuracy"]
    assert found["eval/accuracy_gap"] == pytest.approx(0.9 - evaluation["accuracy"])
    assert found["eval/correlation_gold"] == evaluation["correlation"]["pearson"]
    assert found["eval/agreement"] == pytest.approx(1 / 6)  # opposite members agree on the one tie
    assert found["eval/bias_length"] == 0.25
    assert list(found) == [
        "eval/loss",
        "eval/accuracy",
        "eval/margin",
        "eval/calibration_error",
        "eval/calibration_error_scaled",
        "eval/temperature",
        "eval/correlation_gold",
        "eval/spearman_gold",
        "eval/kendall_gold",
        "eval/correlation_within_gold",
        "eval/accuracy_gap",
        "eval/agreement",
        "eval/bias_length",
    ]


def test_metrics_of_ratings():
    examples = [Rating("p", "a", {OVERALL: 1.0}), Rating("p", "b", {OVERALL: 2.0})]
    found = evaluation_metrics(rating_statistics(examples, torch.tensor([[0.0], [1.0]])))
    assert found == {
        "eval/mean_squared_error": 1.0,
        "eval/correlation_rating": pytest.approx(1),
        "eval/spearman_rating": pytest.approx(1, abs=1e-4),
        "eval/kendall_rating": pytest.approx(1),
    }


def test_rank_correlations_do_not_depend_on_the_last_digits_of_equal_scores():
    scores = torch.tensor([0.3, 0.3, -1.2, 0.7, 0.3, 2.0], dtype=torch.float64)
    gold = torch.tensor([1.0, 2.0, 0.0, 3.0, 1.5, 4.0], dtype=torch.float64)
    rounded = scores + torch.tensor([1e-16, -2e-16, 0.0, 1e-16, 3e-16, 0.0], dtype=torch.float64)
    for kind in ("spearman", "kendall"):
        assert correlations(rounded, gold)[kind] == correlations(scores, gold)[kind] < 1
