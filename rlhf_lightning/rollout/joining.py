"""Several rollouts as one, and some rows of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from rlhf_lightning.types import Rollout, ScoredRollout, TokenContext


def joined(parts: Sequence[ScoredRollout]) -> ScoredRollout:
    """All rows, one part after the other, padded to the widest; times and counts are added up, weights are equal."""
    first, rollouts = parts[0], [part.rollout for part in parts]
    contexts = {
        f.name: _stacked([getattr(rollout.context, f.name).flip(1) for rollout in rollouts]).flip(
            1
        )  # padded on the left
        for f in fields(TokenContext)
    }
    steps = {
        f.name: _stacked([getattr(rollout, f.name) for rollout in rollouts])
        for f in fields(Rollout)
        if f.name != "context"
    }
    return replace(
        first,
        rollout=Rollout(context=TokenContext(**contexts), **steps),
        rewards=_stacked([part.rewards for part in parts]),
        scores=_stacked([part.scores for part in parts]),
        objectives={name: _stacked([part.objectives[name] for part in parts]) for name in first.objectives},
        prompts=[prompt for part in parts for prompt in part.prompts],
        responses=[response for part in parts for response in part.responses],
        measures={name: _stacked([part.measures[name] for part in parts]) for name in first.measures},
        timings={name: sum(part.timings[name] for part in parts) for name in first.timings},
        prompts_shortened=sum(part.prompts_shortened for part in parts),
    )


def selected(scored: ScoredRollout, rows: Int[Tensor, " N"]) -> ScoredRollout:
    """The chosen rows, in the given order, without columns that only pad them; times and counts stay those of all."""
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


def _stacked(parts: Sequence[Shaped[Tensor, "_ ..."]]) -> Shaped[Tensor, "B ..."]:
    """Rows of all parts; [b, T] is padded on the right to the largest T."""
    if parts[0].ndim == 1:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
