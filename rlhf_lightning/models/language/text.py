"""Batches of prompts and responses as token ids, and responses as text; `markup` says where the ids come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.markup import answered_ids, prompt_ids, reply_ids, shortened
from rlhf_lightning.models.language.spelling import spells_special_tokens
from rlhf_lightning.models.language.trunk import input_embedding
from rlhf_lightning.types import Prompt, TokenContext


@dataclass
class EncodedResponses:
    """Prompts with given responses as token ids: the input of policies, critics and reward networks.

    Args:
        actions: response tokens, the end-of-sequence token included, padded on the right.
        truncated_prompts: how many prompts were cut at the start to fit.
        truncated_responses: how many responses were cut at the end to fit.
        spelled: how many rows spell out a special token in their text, which is read as plain text.
    """

    context: TokenContext
    actions: Int[Tensor, "B T"]
    action_mask: Bool[Tensor, "B T"]
    truncated_prompts: int = 0
    truncated_responses: int = 0
    spelled: int = 0

    def rows(self) -> list[tuple[int, ...]]:
        """The token ids of each response, without padding."""
        return [tuple(ids[mask].tolist()) for ids, mask in zip(self.actions, self.action_mask, strict=True)]

    def to(self, device: torch.device | str) -> EncodedResponses:
        """The same on another device."""
        return replace(
            self,
            context=self.context.to(device),
            actions=self.actions.to(device),
            action_mask=self.action_mask.to(device),
        )


def plain_text(prompt: Prompt) -> str:
    """A prompt as plain text for people, without template tokens."""
    if isinstance(prompt, str):
        return prompt
    return prompt[-1]["content"] if len(prompt) == 1 else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UserError` if the tokenizer has more tokens than the model."""
    known = input_embedding(model).num_embeddings
    if len(tokenizer) > known:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens and the model knows {known}; expected the tokenizer that the "
            "model was trained with"
        )


def padded(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """Rows of token ids as one tensor, and which of its places are filled."""
    width = max((len(row) for row in rows), default=1)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, span] = torch.tensor(row, dtype=torch.long)
        mask[i, span] = True
    return ids, mask


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, encoder: bool = False
) -> tuple[TokenContext, int]:
    """Prompts padded on the left, and how many of them were too long: those keep BOS and their last tokens.

    Args:
        max_tokens: maximum number of tokens of a prompt.
        encoder: see `prompt_ids`.
    """
    rows = [prompt_ids(prompt, tokenizer, encoder=encoder) for prompt in prompts]
    return _contexts(rows, [max_tokens] * len(rows), tokenizer)


def _contexts(
    rows: Sequence[list[int]], limits: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[TokenContext, int]:
    if min(limits, default=1) < 1:
        raise UserError(
            f"no room for a prompt: {min(limits)} tokens are left of the context; expected a longer context "
            "or a smaller max_new_tokens"
        )
    kept = [shortened(row, limit, tokenizer) for row, limit in zip(rows, limits, strict=True)]
    ids, mask = padded(kept, left=True)
    return TokenContext(ids, mask), sum(len(row) > limit for row, limit in zip(rows, limits, strict=True))


def encode_responses(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    stop_id: int,
    context_length: int,
    max_response_tokens: int,
    as_rendered: bool = False,
) -> EncodedResponses:
    """Prompts and given responses, each response closed.

    A response longer than ``max_response_tokens`` keeps its first tokens and is not closed. A prompt that does not fit
    beside its own response keeps BOS and its last tokens. Both are counted.

    Args:
        stop_id: closes responses to conversations; those to texts are closed by EOS, if the tokenizer has one.
        as_rendered: read a conversation with its reply exactly as the chat template renders it, for a reward model,
            and let the reply take all the room that the prompt leaves; a policy's response is what it would write
            after the prompt.
    """
    contexts: list[list[int]] = []
    replies: list[list[int]] = []
    truncated = spelled = 0
    for prompt, response in zip(prompts, responses, strict=True):
        longest = max_response_tokens
        if as_rendered and not isinstance(prompt, str):
            context, reply = answered_ids(prompt, response, tokenizer)
            longest = max(longest, context_length - len(context))
        else:
            context = prompt_ids(prompt, tokenizer)
            reply = reply_ids(prompt, response, tokenizer, stop_id=stop_id)
        contexts.append(context)
        replies.append(reply[:longest])
        truncated += len(reply) > longest
        spelled += spells_special_tokens([prompt, response], tokenizer)
    context_batch, truncated_prompts = _contexts(contexts, [context_length - len(row) for row in replies], tokenizer)
    return EncodedResponses(context_batch, *padded(replies, left=False), truncated_prompts, truncated, spelled)


def decode_responses(
    actions: Int[Tensor, "B T"],
    action_mask: Bool[Tensor, "B T"],
    tokenizer: PreTrainedTokenizerBase,
    *,
    stop_ids: Sequence[int] | None = None,
) -> list[str]:
    """Responses as text, without special tokens.

    Args:
        stop_ids: keep all special tokens but one of these at the end of a response; None to keep none.
    """
    rows = [row[mask].tolist() for row, mask in zip(actions.cpu(), action_mask.cpu(), strict=True)]
    if stop_ids is not None:
        rows = [row[:-1] if row and row[-1] in stop_ids else row for row in rows]
    return tokenizer.batch_decode(rows, skip_special_tokens=stop_ids is None, clean_up_tokenization_spaces=False)
