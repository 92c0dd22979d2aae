"""Judging a policy on held-out prompts, always the same ones with the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.models.text import encode_responses
from rlhf_lightning.models.trunk import row_slices
from rlhf_lightning.types import Demonstration, ScoredRollout


def text_statistics(scored: ScoredRollout) -> dict[str, float]:
    """Length, share of responses that end themselves, and diversity of the responses."""
    rollout = scored.rollout
    return {
        "length_mean": rollout.lengths().double().mean().item(),
        "eos_rate": 1 - rollout.truncated.any(-1).double().mean().item(),
        "distinct_2": distinct(scored.responses, 2),
    }


def distinct(responses: Sequence[str], n: int) -> float:
    """Different word n-grams over all word n-grams (Li et al. 2016, "A Diversity-Promoting Objective…")."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, responses) for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


def score_statistics(scored: ScoredRollout) -> dict[str, float]:
    """Mean score and mean of every further measure."""
    means = {name: value.double().mean().item() for name, value in scored.measures.items()}
    return {"score": scored.scores.double().mean().item(), **means}


def win_rate(scored: ScoredRollout, reference: ScoredRollout) -> dict[str, float]:
    """Share of prompts on which the response beats the reference's, with a 95 % Wilson interval.

    Judged by gold where there is one, by the score otherwise; a tie counts one half.
    """
    own, other = (s.measures.get("gold", s.scores).cpu() for s in (scored, reference))
    wins = int((own > other).sum()) + int((own == other).sum()) / 2
    low, high = wilson_interval(wins, len(own))
    return {"win_rate": wins / len(own), "win_rate_low": low, "win_rate_high": high}


def wilson_interval(wins: float, count: int, *, z: float = NormalDist().inv_cdf(0.975)) -> tuple[float, float]:
    """Of the share that ``wins`` of ``count`` estimate (Wilson 1927); half wins are allowed, ``z`` is for 95 %."""
    share, spread = wins / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = (share * (1 - share) * spread + spread * spread / 4) ** 0.5 / (1 + spread)
    return middle - half, middle + half


def sample_records(
    scored: ScoredRollout, kl: Float[Tensor, " B"], *, iteration: int, count: int
) -> list[dict[str, Any]]:
    """The first ``count`` responses as plain records."""
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
    """Of the mean."""
    return (values.double().std() / len(values) ** 0.5).item() if len(values) > 1 else float("nan")


def demonstration_nats(
    policy: TextPolicy, demonstrations: Sequence[Demonstration], *, microbatch_size: int | None
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Negative log-probability of the responses, summed, and the number of their tokens."""
    device = policy.device
    nats, tokens = torch.zeros((), device=device), torch.zeros((), dtype=torch.long, device=device)
    for rows in row_slices(len(demonstrations), microbatch_size):
        chosen = [demonstrations[i] for i in rows.tolist()]
        if not chosen:
            continue
        encoded = encode_responses(
            [d.prompt for d in chosen],
            [d.response for d in chosen],
            policy.tokenizer,
            stop_id=policy.stop_ids[0],
            context_length=policy.context_length,
            max_response_tokens=policy.context_length // 2,
        ).to(device)
        outputs = policy.evaluate(encoded.context, encoded.actions, encoded.action_mask)
        nats, tokens = nats - outputs.logprobs.sum(), tokens + encoded.action_mask.sum()
    return nats, tokens


def perplexity(nats: float, tokens: float) -> float:
    """Exp of the mean nats per token."""
    return torch.tensor(nats / max(tokens, 1)).exp().item()
