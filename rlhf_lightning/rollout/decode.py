"""Sampling responses: a key-value cache, finished rows dropped, noise keyed by row and step."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from rlhf_lightning.models.policy import LanguagePolicy
from rlhf_lightning.models.trunk import feed, language_head
from rlhf_lightning.ops.logprobs import tempered_log_softmax
from rlhf_lightning.ops.noise import fold, gumbel
from rlhf_lightning.types import Rollout, TokenContext

DROP_SHARE = 0.25
"""Finished rows leave the batch once they are this share of it: dropping copies the cache."""


@torch.no_grad()
def decode(
    policy: LanguagePolicy,
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
    precision = torch.float64 if policy.model.dtype == torch.float64 else torch.float32
    logprobs = torch.zeros(total, max_new_tokens, dtype=precision, device=device)
    stops = torch.tensor(policy.stop_ids, device=device)
    head = language_head(policy.model)

    cache = DynamicCache(config=policy.model.config)
    mask = context.attention_mask
    hidden = feed(policy.model, context.input_ids, mask, cache)
    if samples > 1:
        cache.batch_repeat_interleave(samples)
        hidden, mask = hidden.repeat_interleave(samples, 0), mask.repeat_interleave(samples, 0)
    carried = torch.arange(total, device=device)
    alive = torch.ones(total, dtype=torch.bool, device=device)

    for step in range(max_new_tokens):
        distribution = tempered_log_softmax(head(hidden), temperature=policy.temperature)
        token = _choose(distribution, None if greedy else fold(keys[carried], step))
        drawn = distribution.gather(-1, token[:, None]).squeeze(-1)
        live = carried[alive]
        actions[live, step], logprobs[live, step] = token[alive], drawn[alive].to(precision)
        action_mask[live, step] = True
        alive = alive & ~torch.isin(token, stops)
        if not alive.any() or step == max_new_tokens - 1:
            break
        if (~alive).sum() >= DROP_SHARE * len(alive):
            kept = alive.nonzero().squeeze(-1)
            cache.batch_select_indices(kept)
            token, mask, carried, alive = token[kept], mask[kept], carried[kept], alive[kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        hidden = feed(policy.model, token[:, None], mask, cache)

    width = int(action_mask.any(0).sum())
    truncated = torch.zeros(total, dtype=torch.bool, device=device)
    truncated[carried[alive]] = True
    return Rollout(
        context=context if samples == 1 else context.select(torch.arange(total, device=device) // samples),
        actions=actions[:, :width],
        action_mask=action_mask[:, :width],
        old_logprobs=logprobs[:, :width],
        truncated=truncated,
        rows=rows,
    )


def _choose(distribution: Tensor, keys: Tensor | None) -> Tensor:
    """Most probable token, after adding Gumbel noise where keys are given."""
    if keys is None:
        return distribution.argmax(-1)
    noise = gumbel(keys, size=distribution.shape[-1])
    return (distribution + noise.to(distribution.dtype)).argmax(-1)
