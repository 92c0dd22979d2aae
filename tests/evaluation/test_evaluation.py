import math

import pytest
import tiny_models
import torch
from scipy.stats import binomtest

from rlhf_lightning.evaluation.heldout import demonstration_nats, perplexity
from rlhf_lightning.rollout.statistics import (
    distinct_ngrams,
    sample_records,
    score_statistics,
    standard_error,
    text_statistics,
    win_rate,
)
from rlhf_lightning.types import Demonstration, Rollout, ScoredRollout, TokenContext


def scored(scores, *, lengths=None, truncated=None, responses=None, **measures):
    count = len(scores)
    lengths = lengths or [1] * count
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    last = torch.arange(width) == torch.tensor(lengths)[:, None] - 1
    cut = torch.tensor(truncated or [False] * count)[:, None]
    rollout = Rollout(
        context=TokenContext(torch.zeros(count, 1).long(), torch.ones(count, 1).bool()),
        actions=torch.zeros(count, width).long(),
        action_mask=mask,
        old_logprobs=torch.full((count, width), math.nan),
        terminated=last & ~cut,
        truncated=last & cut,
        rows=torch.arange(count),
    )
    return ScoredRollout(
        rollout=rollout,
        rewards=torch.zeros(count, width),
        scores=torch.tensor(scores, dtype=torch.float32),
        prompts=[f"p{i}" for i in range(count)],
        responses=responses or [f"r{i} {score:g}" for i, score in enumerate(scores)],
        measures={name: torch.tensor(value, dtype=torch.float32) for name, value in measures.items()},
    )


def test_text_statistics_by_hand():
    found = text_statistics(
        scored([0, 0, 0, 0], lengths=[1, 2, 3, 4], truncated=[False, True, False, False], responses=["a b a b"] * 4)
    )
    assert found["length_mean"] == 2.5
    assert found["eos_rate"] == 0.75
    assert found["distinct_2"] == 2 / 12  # ab, ba among three bigrams of each response


def test_length_of_wrong_responses_where_all_are_right_or_wrong():
    assert text_statistics(scored([0, 1, 0, 1], lengths=[2, 9, 5, 9]))["length_wrong"] == 3.5
    for scores in ([0, 1, 0.5, 1], [0, 0, 0, 0], [1, 1, 1, 1], [-1, 1, 0, 1]):
        assert "length_wrong" not in text_statistics(scored(scores, lengths=[2, 9, 5, 9])), scores


@pytest.mark.parametrize(
    ("responses", "n", "expected"),
    [
        (["a b c"], 1, 1.0),
        (["a a a"], 1, 1 / 3),
        (["a b", "a b"], 2, 1 / 2),
        (["a b", "b a"], 2, 1.0),  # no bigram across two responses
        (["a", ""], 2, 0.0),
        ([], 2, 0.0),
    ],
)
def test_distinct_by_hand(responses, n, expected):
    assert distinct_ngrams(responses, n) == expected


def test_score_statistics_are_means_of_scores_and_measures():
    found = score_statistics(scored([1.0, 2.0, 6.0], gold=[0.0, 0.0, 3.0], gold_words=[1.0, 1.0, 1.0]))
    assert found == {"score": 3.0, "gold": 1.0, "gold_words": 1.0}


def test_win_rate_counts_ties_half_and_has_a_wilson_interval():
    own, other = scored([3.0, 1.0, 2.0, 5.0]), scored([1.0, 1.0, 4.0, 2.0])
    found = win_rate(own, other)
    assert found["win_rate"] == 2.5 / 4
    assert found["win_rate_low"] < found["win_rate"] < found["win_rate_high"]
    many = win_rate(scored([1.0] * 60 + [0.0] * 40), scored([0.5] * 100))
    z, n, p = 1.959964, 100, 0.6
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert many["win_rate"] == 0.6
    assert many["win_rate_low"] == pytest.approx((middle - half) / (1 + z * z / n), abs=1e-6)
    assert many["win_rate_high"] == pytest.approx((middle + half) / (1 + z * z / n), abs=1e-6)
    assert many["win_rate_low"] == pytest.approx(binomtest(60, 100).proportion_ci(method="wilson").low, abs=1e-6)


@pytest.mark.parametrize("ties", range(1, 8))
def test_win_rate_of_ties_is_one_half_in_the_middle_of_its_interval(ties):
    found = win_rate(scored([1.0] * ties), scored([1.0] * ties))
    assert found["win_rate"] == 0.5
    assert found["win_rate_low"] + found["win_rate_high"] == pytest.approx(1.0, abs=1e-9)


def test_win_rate_of_the_same_response_is_a_tie_however_its_scores_are_rounded():
    own = scored([0.25, 0.25, 2.0], responses=["a", "b", "c"])
    other = scored([0.25 + 2**-24, 0.25 - 2**-24, 1.0], responses=["a", "b", "d"])
    assert win_rate(own, other)["win_rate"] == (0.5 + 0.5 + 1) / 3


def test_win_rate_is_judged_by_gold_where_there_is_one():
    own, other = scored([9.0, 9.0], gold=[0.0, 1.0]), scored([0.0, 0.0], gold=[1.0, 2.0])
    assert win_rate(own, other)["win_rate"] == 0.0


def test_sample_records_are_plain_and_as_many_as_asked():
    own = scored([1.0, 2.0, 3.0], gold=[0.5, 0.25, 0.0], responses=["r0", "r1", "r2"])
    kl = torch.tensor([0.1, 0.2, 0.3])
    records = sample_records(own, kl, iteration=7, count=2)
    assert [r["row"] for r in records] == [0, 1]
    assert records[1] == {
        "iteration": 7,
        "row": 1,
        "prompt": "p1",
        "response": "r1",
        "score": 2.0,
        "gold": 0.25,
        "kl": pytest.approx(0.2),
    }
    assert len(sample_records(own, kl, iteration=0, count=99)) == 3
    assert sample_records(scored([1.0]), kl, iteration=0, count=1)[0]["gold"] is None


def test_standard_error_by_hand():
    assert standard_error(torch.tensor([1.0, 3.0])) == pytest.approx(1.0)  # std √2 over √2
    assert math.isnan(standard_error(torch.tensor([1.0])))


def test_perplexity_is_the_exponential_of_nats_per_token():
    assert perplexity(math.log(8) * 5, 5) == pytest.approx(8.0)
    assert perplexity(0.0, 0) == 1.0


@pytest.mark.parametrize("microbatch_size", [None, 1, 2])
def test_demonstration_nats_are_those_of_each_response_read_alone(microbatch_size):
    policy = tiny_models.policy("llama").double().eval()
    pairs = [("the cat sees", "a dog"), ("a", ""), ("the red dog likes", "a green cow")]
    nats, tokens = demonstration_nats(policy, [Demonstration(*pair) for pair in pairs], microbatch_size=microbatch_size)
    expected, count = 0.0, 0
    for prompt, response in pairs:
        asked, said = policy.tokenizer(prompt)["input_ids"], [*policy.tokenizer(response)["input_ids"], 1]
        logprobs = policy.model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1].log_softmax(-1)
        expected -= logprobs[torch.arange(len(said)), said].sum().item()
        count += len(said)
    assert nats.item() == pytest.approx(expected, abs=1e-9)
    assert tokens.item() == count == 8


def test_demonstration_nats_of_none_are_zero():
    nats, tokens = demonstration_nats(tiny_models.policy(), [], microbatch_size=None)
    assert (nats.item(), tokens.item()) == (0.0, 0)
