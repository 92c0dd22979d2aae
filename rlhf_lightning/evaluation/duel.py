"""Which of two policies gives the better responses: win rate with an interval, and what length has to do with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.intervals import clustered_wilson_interval, student_interval
from rlhf_lightning.rollout.statistics import outcomes

SAME_LENGTH = 0.1
"""Two responses are about equally long where the shorter one lacks at most this share of the longer one's words."""


@dataclass(frozen=True)
class Share:
    """A share of pairs, with its 95 % interval.

    Args:
        value: NaN where there are no such pairs, as are the ends.
        pairs: number of pairs that it is a share of.
    """

    value: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class Duel:
    """Two policies' responses to the same prompts, judged.

    Args:
        outcomes: 1 where the first policy's response won, 0 where the second's did, ½ for a tie; a row for each prompt.
        win_rate: of the first policy.
        longer_wins: how often the longer response wins, where one is longer; ½ if length has no influence.
        win_rate_same_length: of the first policy among responses of about equal length.
        difference: mean of the first policy's score minus the second's, and half the width of its 95 % interval.
    """

    outcomes: Float[Tensor, "P K"]
    win_rate: Share
    longer_wins: Share
    win_rate_same_length: Share
    difference: tuple[float, float]


def duel(
    scores: Float[Tensor, "P K"],
    other_scores: Float[Tensor, "P K"],
    groups: Sequence[Sequence[str]],
    other_groups: Sequence[Sequence[str]],
) -> Duel:
    """Compare K responses of each policy to each of P prompts, the first with the first and so on.

    Prompts are independent, responses to one prompt are not: all intervals are over prompts.

    Args:
        groups: the responses, with their scores in ``scores``.
    """
    shape = scores.shape
    texts, others = ([text for group in given for text in group] for given in (groups, other_groups))
    won = outcomes(scores.flatten(), other_scores.flatten(), texts, others).view(shape)
    lengths, other_lengths = (
        torch.tensor([len(text.split()) for text in given]).view(shape) for given in (texts, others)
    )
    longer = lengths > other_lengths
    shorter_by = (lengths - other_lengths).abs()
    return Duel(
        outcomes=won,
        win_rate=_share(won, torch.ones_like(longer)),
        longer_wins=_share(torch.where(longer, won, 1 - won), shorter_by > 0),
        win_rate_same_length=_share(won, shorter_by <= SAME_LENGTH * torch.maximum(lengths, other_lengths)),
        difference=student_interval((scores - other_scores).mean(-1).tolist()),
    )


def _share(won: Float[Tensor, "P K"], pair_mask: Bool[Tensor, "P K"]) -> Share:
    """The mean of some pairs' outcomes."""
    rows = zip(won, pair_mask, strict=True)
    clusters = [row[counts].tolist() for row, counts in rows if counts.any()]
    if not clusters:
        return Share(float("nan"), float("nan"), float("nan"), 0)
    pairs = sum(map(len, clusters))
    low, high = clustered_wilson_interval(clusters)
    return Share(sum(map(sum, clusters)) / pairs, low, high, pairs)
