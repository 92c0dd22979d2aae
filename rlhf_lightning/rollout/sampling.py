"""Sample texts from a policy outside of training."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from rlhf_lightning.distributed import Stream
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.models.language.text import decode_responses, encode_prompts
from rlhf_lightning.ops.noise import row_keys
from rlhf_lightning.rollout.decode import FastDecoder
from rlhf_lightning.types import Prompt


def sample_responses(
    policy: LanguagePolicy,
    prompts: Sequence[Prompt],
    *,
    numbers: Sequence[int],
    samples: int,
    seed: int,
    stream: Stream,
    iteration: int,
    max_new_tokens: int,
    greedy: bool = False,
    keep_special_tokens: bool = False,
) -> list[str]:
    """``samples`` responses to each prompt, those to the same prompt next to each other.

    The noise of a response is a function of ``seed``, ``stream``, ``iteration``, its prompt's number and its own number
    among the samples: it does not depend on which prompts are in the same batch.

    Args:
        numbers: one for each prompt.
        greedy: take the most probable token each time.
        keep_special_tokens: leave the special tokens in the texts, but the one that ends a response.

    Raises:
        UserError: the policy's probabilities are not finite.
    """
    device = policy.device
    room = policy.context_length - max_new_tokens
    context, shortened = encode_prompts(prompts, policy.tokenizer, max_tokens=room)
    if shortened:
        note = f"{shortened} of {len(prompts)} prompts are longer than {room} tokens and keep their last ones"
        print(note, file=sys.stderr)
    rows = (torch.tensor(numbers)[:, None] * samples + torch.arange(samples)).flatten().to(device)
    keys = row_keys(seed=seed, stream=stream, iteration=iteration, rows=rows)
    rollout = FastDecoder().generate(
        policy, context.to(device), keys=keys, rows=rows, max_new_tokens=max_new_tokens, greedy=greedy
    )
    bad = (~torch.isfinite(rollout.old_logprobs)).any(-1).nonzero()
    if len(bad):
        raise UserError(
            f"the policy's probabilities are not finite for the prompt {prompts[int(bad[0]) // samples]!r}; "
            "expected a model whose weights are"
        )
    stops = policy.stop_ids if keep_special_tokens else None
    return decode_responses(rollout.actions, rollout.action_mask, policy.tokenizer, stop_ids=stops)
