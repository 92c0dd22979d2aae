"""Concatenation of rollouts, and selection of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from rlhf_lightning.types import Rollout, ScoredRollout, TokenContext


def join_rollouts(parts: Sequence[Rollout], change: Callable[[Tensor], Tensor] = lambda joined: joined) -> Rollout:
    """The rows of all parts in order, padded to the widest: prompts on the left, responses on the right.

    Args:
        change: of each joined tensor; it sees prompts turned round, with their padding on the right.
    """
    contexts = {
        f.name: change(_concatenated([getattr(part.context, f.name).flip(1) for part in parts])).flip(1)
        for f in fields(TokenContext)
    }
    steps = {
        f.name: change(_concatenated([getattr(part, f.name) for part in parts]))
        for f in fields(Rollout)
        if f.name != "context"
    }
    return Rollout(context=TokenContext(**contexts), **steps)


def join_scored(parts: Sequence[ScoredRollout]) -> ScoredRollout:
    """The rows of all parts in order; times and counts are sums, weights and group size those of the first part."""
    first = parts[0]
    return replace(
        first,
        rollout=join_rollouts([part.rollout for part in parts]),
        rewards=_concatenated([part.rewards for part in parts]),
        scores=_concatenated([part.scores for part in parts]),
        objectives={name: _concatenated([part.objectives[name] for part in parts]) for name in first.objectives},
        prompts=[prompt for part in parts for prompt in part.prompts],
        responses=[response for part in parts for response in part.responses],
        measures={name: _concatenated([part.measures[name] for part in parts]) for name in first.measures},
        timings={name: sum(part.timings[name] for part in parts) for name in first.timings},
        prompts_shortened=sum(part.prompts_shortened for part in parts),
        prompts_spelled=sum(part.prompts_spelled for part in parts),
    )


def select_scored(scored: ScoredRollout, rows: Int[Tensor, " N"]) -> ScoredRollout:
    """The given rows in the given order, without columns of padding alone; times and counts remain those of all."""
    rollout = scored.rollout.select(rows)
    return replace(
        scored,
        rollout=rollout,
        rewards=scored.rewards[rows][:, : rollout.actions.shape[1]],
        scores=scored.scores[rows],
        objectives={name: values[rows] for name, values in scored.objectives.items()},
        prompts=[scored.prompts[row] for row in rows.tolist()],
        responses=[scored.responses[row] for row in rows.tolist()],
        measures={name: values[rows] for name, values in scored.measures.items()},
    )


def _concatenated(parts: Sequence[Shaped[Tensor, "_ ..."]]) -> Shaped[Tensor, "B ..."]:
    """Rows of all parts; [b, T] is padded on the right to the largest T."""
    if parts[0].ndim == 1:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
