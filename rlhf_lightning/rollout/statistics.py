"""Statistics of a rollout, and samples of its responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.intervals import wilson_interval
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.types import ScoredRollout

WIN_RATE = Metric(
    "Win rate",
    "against the reference, 95 % interval",
    heldout="eval/win_rate",
    role="heldout",
    floor=0,
    mark=0.5,
    mark_name="even",
)
TEXT_METRICS = (
    Metric("Reply length", "tokens", "rollout/length_mean", "eval/length_mean", floor=0),
    Metric("Replies that end themselves", "share with an end-of-sequence token", "rollout/eos_rate", "eval/eos_rate"),
    Metric(
        "Distinct bigrams",
        "share among all; falls with repetition",
        "rollout/distinct_2",
        "eval/distinct_2",
        floor=0,
    ),
    Metric(
        "Length of wrong replies",
        "tokens, where replies are scored 1 or 0",
        "rollout/length_wrong",
        "eval/length_wrong",
        floor=0,
    ),
    Metric("Perplexity", "on demonstrations; rises with forgetting", heldout="eval/perplexity", role="heldout"),
)
"""Metrics of every policy that answers prompts."""


def text_statistics(scored: ScoredRollout) -> dict[str, float]:
    """Mean length, share of responses with an end-of-sequence token, and diversity of the responses.

    Where some are scored 1, and all others 0, also the mean length of these: longer wrong responses are what averaging
    a loss over each response rewards (Liu et al. 2025, "Understanding R1-Zero-Like Training", § 3.1).
    """
    rollout, lengths = scored.rollout, scored.rollout.lengths().double()
    right, wrong = scored.scores == 1, scored.scores == 0
    told_apart = bool((right | wrong).all() and right.any() and wrong.any())
    return {
        "length_mean": lengths.mean().item(),
        "eos_rate": 1 - rollout.truncated.any(-1).double().mean().item(),
        "distinct_2": distinct_ngrams(scored.responses, 2),
        **({"length_wrong": lengths[wrong].mean().item()} if told_apart else {}),
    }


def distinct_ngrams(responses: Sequence[str], n: int) -> float:
    """Share of distinct word n-grams among all (Li et al. 2016, "A Diversity-Promoting Objective Function…")."""
    ngrams = [tuple(words[i : i + n]) for words in map(str.split, responses) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / max(len(ngrams), 1)


def score_statistics(scored: ScoredRollout) -> dict[str, float]:
    """Mean score and mean of every further measure."""
    means = {name: value.double().mean().item() for name, value in scored.measures.items()}
    return {"score": scored.scores.double().mean().item(), **means}


def win_rate(scored: ScoredRollout, reference: ScoredRollout) -> dict[str, float]:
    """Share of prompts on which the response beats the reference's, with a 95 % Wilson interval.

    Compared by gold if there is one, by the score otherwise; see `outcomes` for ties.
    """
    ours, theirs = (rollout.measures.get("gold", rollout.scores).cpu() for rollout in (scored, reference))
    wins = outcomes(ours, theirs, scored.responses, reference.responses).sum().item()
    low, high = wilson_interval(wins, len(ours))
    return {"win_rate": wins / len(ours), "win_rate_low": low, "win_rate_high": high}


def outcomes(
    ours: Float[Tensor, " B"], theirs: Float[Tensor, " B"], responses: Sequence[str], others: Sequence[str]
) -> Float[Tensor, " B"]:
    """1 where our response has the higher score, 0 where the other one has, ½ for a tie.

    The same response is a tie, too, where its two scores differ by rounding.
    """
    same = torch.tensor([one == other for one, other in zip(responses, others, strict=True)], dtype=torch.bool)
    return torch.where(same | (ours == theirs), 0.5, (ours > theirs).double())


def sample_records(
    scored: ScoredRollout, kl: Float[Tensor, " B"], *, iteration: int, count: int
) -> list[dict[str, Any]]:
    """The first ``count`` responses as records for JSON.

    Args:
        kl: to the reference, in nats per sequence.
    """
    gold = scored.measures.get("gold")
    return [
        {
            "iteration": iteration,
            "row": row,
            "prompt": scored.prompts[row],
            "response": scored.responses[row],
            "score": scored.scores[row].item(),
            "gold": None if gold is None else gold[row].item(),
            "kl": kl[row].item(),
        }
        for row in range(min(count, len(scored)))
    ]


def standard_error(values: Float[Tensor, " B"]) -> float:
    """Standard error of the mean; NaN for a single value."""
    return (values.double().std() / len(values) ** 0.5).item() if len(values) > 1 else float("nan")
