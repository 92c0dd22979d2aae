"""`EagerDecoder` and `FastDecoder`: the built-in decoding engines."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_lightning.models.policy import Decoding, TextPolicy
from rlhf_lightning.ops.noise import fold, gumbel_argmax
from rlhf_lightning.rollout.engine import DecodingEngine
from rlhf_lightning.types import Rollout, TokenContext

DROP_SHARE = 0.25
"""Finished rows are removed from the batch once they are this share of it; removing them copies the cache."""


class EagerDecoder(DecodingEngine):
    """Decodes a batch token by token with the policy's own forward; finished rows are removed from the batch.

    Tokens are sampled by the Gumbel-max rule, argmax of log-probabilities plus noise, where the noise is a function of
    key, step and token alone. See `rollout.engine.DecodingEngine` for what this guarantees.
    """

    def begin(self, policy: TextPolicy, context: TokenContext, *, samples: int, room: int) -> Decoding:
        """The state of the policy that writes the responses."""
        return policy.decoding(context, samples=samples)

    @torch.no_grad()
    def generate(
        self,
        policy: TextPolicy,
        context: TokenContext,
        *,
        keys: Int[Tensor, " B"],
        rows: Int[Tensor, " B"],
        max_new_tokens: int,
        greedy: bool = False,
    ) -> Rollout:
        """Sample one response per key; see `DecodingEngine.generate`. Each prompt is read once.

        Raises:
            ValueError: the numbers of keys, rows and prompts do not match.
        """
        device = context.input_ids.device
        total, samples = len(keys), len(keys) // len(context)
        if total != samples * len(context) or len(rows) != total:
            raise ValueError(
                f"{total} keys and {len(rows)} rows for {len(context)} prompts; expected a multiple of them"
            )
        actions = torch.zeros(total, max_new_tokens, dtype=torch.long, device=device)
        action_mask = torch.zeros(total, max_new_tokens, dtype=torch.bool, device=device)
        logprobs = torch.zeros(total, max_new_tokens, dtype=policy.precision, device=device)
        terminated, truncated = torch.zeros_like(action_mask), torch.zeros_like(action_mask)
        stop_ids = torch.tensor(policy.stop_ids, device=device)

        state = self.begin(policy, context, samples=samples, room=max_new_tokens - 1)
        decoded = torch.arange(total, device=device)  # numbers of the rows that are still in the batch
        unfinished = torch.ones(total, dtype=torch.bool, device=device)  # which of these have not ended

        for step in range(max_new_tokens):
            distribution = state.distribution()
            tokens = distribution.argmax(-1) if greedy else gumbel_argmax(distribution, fold(keys[decoded], step))
            token_logprobs = distribution.gather(-1, tokens[:, None]).squeeze(-1)
            written = decoded[unfinished]
            actions[written, step] = tokens[unfinished]
            logprobs[written, step] = token_logprobs[unfinished].to(policy.precision)
            action_mask[written, step] = True
            stopped = torch.isin(tokens, stop_ids)
            terminated[written, step] = stopped[unfinished]
            unfinished = unfinished & ~stopped
            if not unfinished.any() or step == max_new_tokens - 1:
                break
            if (~unfinished).sum() >= DROP_SHARE * len(unfinished):
                remaining = unfinished.nonzero().squeeze(-1)
                state.keep(remaining)
                tokens, decoded, unfinished = tokens[remaining], decoded[remaining], unfinished[remaining]
            state.append(tokens)

        width = int(action_mask.any(0).sum())
        truncated[decoded[unfinished], width - 1] = True
        return Rollout(
            context=context if samples == 1 else context.select(torch.arange(total, device=device) // samples),
            actions=actions[:, :width],
            action_mask=action_mask[:, :width],
            old_logprobs=logprobs[:, :width],
            terminated=terminated[:, :width],
            truncated=truncated[:, :width],
            rows=rows,
        )


class FastDecoder(EagerDecoder):
    """The same with steps of our own for common architectures, and with the policy's own forward for others.

    The tokens are those of `EagerDecoder`, and the log-probabilities up to rounding.
    """

    def begin(self, policy: TextPolicy, context: TokenContext, *, samples: int, room: int) -> Decoding:
        """The state of the policy that writes the responses."""
        return policy.fast_decoding(context, samples=samples, room=room)
