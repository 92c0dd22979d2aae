"""Sampling responses: finished rows dropped, noise keyed by row and step."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.ops.noise import fold, gumbel
from rlhf_lightning.types import Rollout, TokenContext

DROP_SHARE = 0.25
"""Finished rows leave the batch once they are this share of it: dropping copies the cache."""


@torch.no_grad()
def decode(
    policy: TextPolicy,
    context: TokenContext,
    *,
    keys: Int[Tensor, " B"],
    rows: Int[Tensor, " B"],
    max_new_tokens: int,
    greedy: bool = False,
) -> Rollout:
    """Sample one response per key by the Gumbel-max rule: argmax of logprobs + noise.

    Args:
        context: prompts; where there are fewer of them than keys, each is answered several times in a row
            (it is read once, and its cache repeated).
        keys: one noise key per response; the noise is a function of key, step and token alone.
        rows: global row numbers, carried along.
        max_new_tokens: a response that has not ended by then is cut and marked as truncated.
        greedy: take the most probable token instead of sampling.
    """
    device = context.input_ids.device
    total, samples = len(keys), len(keys) // len(context)
    if total != samples * len(context) or len(rows) != total:
        raise ValueError(f"{total} keys and {len(rows)} rows for {len(context)} prompts; expected a multiple of them")
    actions = torch.zeros(total, max_new_tokens, dtype=torch.long, device=device)
    action_mask = torch.zeros(total, max_new_tokens, dtype=torch.bool, device=device)
    logprobs = torch.zeros(total, max_new_tokens, dtype=policy.precision, device=device)
    terminated = torch.zeros_like(action_mask)
    stops = torch.tensor(policy.stop_ids, device=device)

    state = policy.decoding(context, samples=samples)
    carried = torch.arange(total, device=device)
    alive = torch.ones(total, dtype=torch.bool, device=device)

    for step in range(max_new_tokens):
        distribution = state.distribution()
        token = _choose(distribution, None if greedy else fold(keys[carried], step))
        drawn = distribution.gather(-1, token[:, None]).squeeze(-1)
        live = carried[alive]
        actions[live, step], logprobs[live, step] = token[alive], drawn[alive].to(policy.precision)
        action_mask[live, step] = True
        stopped = torch.isin(token, stops)
        terminated[live, step] = stopped[alive]
        alive = alive & ~stopped
        if not alive.any() or step == max_new_tokens - 1:
            break
        if (~alive).sum() >= DROP_SHARE * len(alive):
            kept = alive.nonzero().squeeze(-1)
            state.keep(kept)
            token, carried, alive = token[kept], carried[kept], alive[kept]
        state.append(token)

    width = int(action_mask.any(0).sum())
    truncated = torch.zeros_like(action_mask)
    truncated[carried[alive], width - 1] = True
    return Rollout(
        context=context if samples == 1 else context.select(torch.arange(total, device=device) // samples),
        actions=actions[:, :width],
        action_mask=action_mask[:, :width],
        old_logprobs=logprobs[:, :width],
        terminated=terminated[:, :width],
        truncated=truncated[:, :width],
        rows=rows,
    )


def _choose(distribution: Tensor, keys: Tensor | None) -> Tensor:
    """Most probable token, after adding Gumbel noise where keys are given."""
    if keys is None:
        return distribution.argmax(-1)
    noise = gumbel(keys, size=distribution.shape[-1])
    return (distribution + noise.to(distribution.dtype)).argmax(-1)
