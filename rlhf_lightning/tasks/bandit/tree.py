"""All responses of the enumerable task by number; `models.tabular` explains the numbering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rlhf_lightning.models.language.text import encode_responses
from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.models.tabular import DEPTH, PREFIXES, TOKENS
from rlhf_lightning.ops.rewards import last_action_rewards
from rlhf_lightning.tasks.word_tokenizer import word_level
from rlhf_lightning.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROMPT = TOKENS[0]
"""The prompt is the end-of-sequence token, so that the vocabulary needs no fourth token."""


def _text(number: int) -> str:
    return f"{_text((number - 1) // 2)} {TOKENS[2 - number % 2]}".strip() if number else ""


RESPONSES = tuple(_text(number) for number in range(PREFIXES))
"""The text of each response."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with these three tokens only."""
    return word_level(TOKENS, eos_token=TOKENS[0], special_tokens_in_text=True)  # the prompt is one


def as_rollout(policy: TextPolicy, numbers: Sequence[int] = range(PREFIXES)) -> Rollout:
    """The given responses as a rollout, as if the policy had sampled them with at most three new tokens.

    Responses of three letters are cut after the last one, the others terminate with the end-of-sequence token.

    Args:
        policy: any policy over the three tokens.
        numbers: numbers of the responses, in order; all of them by default.
    """
    stop = policy.stop_ids[0]
    encoded = encode_responses(
        [PROMPT] * len(numbers),
        [RESPONSES[number] for number in numbers],
        policy.tokenizer,
        stop_id=stop,
        context_length=policy.context_length,
        max_response_tokens=DEPTH,
    ).to(policy.device)
    mask = encoded.action_mask
    with torch.no_grad():
        logprobs = policy.evaluate(encoded.context, encoded.actions, mask).logprobs
    last = last_action_rewards(torch.ones_like(logprobs[:, 0]), mask) > 0
    return Rollout(
        context=encoded.context,
        actions=encoded.actions,
        action_mask=mask,
        old_logprobs=logprobs,
        terminated=last & (encoded.actions == stop),
        truncated=last & (encoded.actions != stop),
        rows=torch.arange(len(numbers), device=mask.device),
    )
