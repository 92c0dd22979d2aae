"""Batches of prompts and responses as token ids, and responses as text; `markup` says where the ids come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.markup import answered_ids, closing_id, prompt_ids
from rlhf_lightning.models.language.spelling import plain_ids, spells_special_tokens
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
        lengths = self.action_mask.sum(-1).tolist()
        return [tuple(ids[:length]) for ids, length in zip(self.actions.tolist(), lengths, strict=True)]

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


def padded(rows: Sequence[Sequence[int] | Ids], *, left: bool) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """Rows of token ids as one tensor, and which of its places are filled."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)[:, None]
    width = int(lengths.max()) if len(rows) else 1
    columns = torch.arange(width)
    mask = columns >= width - lengths if left else columns < lengths
    ids = torch.zeros(mask.shape, dtype=torch.long)
    if len(rows):
        ids[mask] = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    return ids, mask


# -- token ids of texts, which passes over data ask for again and again -----------------------------------------------

_KEPT = 1 << 16
"""Number of prompts, and of responses, whose token ids are remembered."""

Ids: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int32]]
_FrozenPrompt: TypeAlias = str | tuple[tuple[tuple[str, str], ...], ...]


def _frozen(prompt: Prompt) -> _FrozenPrompt:
    return prompt if isinstance(prompt, str) else tuple(tuple(turn.items()) for turn in prompt)


def _thawed(prompt: _FrozenPrompt) -> Prompt:
    return prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt]


@lru_cache(maxsize=_KEPT)
def _prompt(prompt: _FrozenPrompt, tokenizer: PreTrainedTokenizerBase, template: str, encoder: bool) -> Ids:
    return np.array(prompt_ids(_thawed(prompt), tokenizer, encoder=encoder), dtype=np.int32)


@lru_cache(maxsize=_KEPT)
def _reply(response: str, tokenizer: PreTrainedTokenizerBase, closing: int) -> Ids:
    return np.array([*plain_ids(response, tokenizer), closing], dtype=np.int32)


@lru_cache(maxsize=_KEPT)
def _answered(
    prompt: _FrozenPrompt, response: str, tokenizer: PreTrainedTokenizerBase, template: str
) -> tuple[Ids, Ids]:
    turns = _thawed(prompt)
    assert not isinstance(turns, str)
    alone = _prompt(prompt, tokenizer, template, False).tolist()
    context, reply = answered_ids(turns, response, tokenizer, prompt_alone=alone)
    return np.array(context, dtype=np.int32), np.array(reply, dtype=np.int32)


def reply_ids(prompt: Prompt, response: str, tokenizer: PreTrainedTokenizerBase, *, stop_id: int) -> Ids:
    """Token ids of a given response, closed as its prompt asks for."""
    return _reply(response, tokenizer, closing_id(prompt, tokenizer, stop_id=stop_id))


def _shortened(ids: Ids, limit: int, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The last ``limit`` tokens of a prompt; BOS, or the token with which an encoder begins, stays in its place."""
    if len(ids) <= limit:
        return ids
    first = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    kept = 1 if ids[0] in first and limit > 1 else 0
    return np.concatenate([ids[:kept], ids[len(ids) - limit + kept :]])


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, encoder: bool = False
) -> tuple[TokenContext, int]:
    """Prompts padded on the left, and how many of them were too long: those keep BOS and their last tokens.

    Args:
        max_tokens: maximum number of tokens of a prompt.
        encoder: see `prompt_ids`.
    """
    template = str(tokenizer.chat_template)
    rows = [_prompt(_frozen(prompt), tokenizer, template, encoder) for prompt in prompts]
    return _contexts(rows, [max_tokens] * len(rows), tokenizer)


def _contexts(
    rows: Sequence[Ids], limits: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[TokenContext, int]:
    if min(limits, default=1) < 1:
        raise UserError(
            f"no room for a prompt: {min(limits)} tokens are left of the context; expected a longer context "
            "or a smaller max_new_tokens"
        )
    kept = [_shortened(row, limit, tokenizer) for row, limit in zip(rows, limits, strict=True)]
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
    contexts: list[Ids] = []
    replies: list[Ids] = []
    truncated = spelled = 0
    template = str(tokenizer.chat_template)
    for prompt, response in zip(prompts, responses, strict=True):
        longest = max_response_tokens
        if as_rendered and not isinstance(prompt, str):
            context, reply = _answered(_frozen(prompt), response, tokenizer, template)
            longest = max(longest, context_length - len(context))
        else:
            context = _prompt(_frozen(prompt), tokenizer, template, False)
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
