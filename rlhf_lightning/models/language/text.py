"""Conversion between text and token ids: prompts, responses and stop tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.trunk import input_embedding
from rlhf_lightning.types import Prompt, TokenContext

PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '\n\n' if not loop.first }}"
    "{{ 'Human' if message['role'] == 'user' else message['role'] | capitalize }}: {{ message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""For checkpoints without a chat template: the transcript layout of the Anthropic HH data."""


@dataclass
class EncodedResponses:
    """Prompts with given responses as token ids: the input of policies, critics and reward networks.

    Args:
        actions: response tokens, the end-of-sequence token included, padded on the right.
        truncated_prompts: how many prompts were cut at the start to fit.
        truncated_responses: how many responses were cut at the end to fit.
    """

    context: TokenContext
    actions: Int[Tensor, "B T"]
    action_mask: Bool[Tensor, "B T"]
    truncated_prompts: int = 0
    truncated_responses: int = 0

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


def prompt_text(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """A prompt as the model reads it: a conversation is rendered by the chat template, a text is unchanged."""
    if isinstance(prompt, str):
        return prompt
    try:
        return str(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"the chat template cannot render the prompt {prompt!r}: {error}") from error


def prompt_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt; a chat template adds its special tokens itself."""
    text = prompt_text(prompt, tokenizer)
    ids = _token_ids(text, tokenizer, add_special_tokens=isinstance(prompt, str))
    if not ids:
        raise UserError(f"the prompt {prompt!r} has no tokens; expected at least one")
    return ids


def _token_ids(text: str, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool) -> list[int]:
    try:
        return list(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])
    except Exception as error:  # the library's own class is the plain one
        if "Missing [UNK]" not in str(error):
            raise
        raise UserError(
            f"the tokenizer has no token for some of {text!r:.80}, and none for unknown words; expected words of its "
            f"vocabulary, such as {', '.join(map(repr, sorted(tokenizer.get_vocab())[:5]))}"
        ) from error


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token id that ends a response; the first one closes a given response."""
    generation = getattr(model, "generation_config", None)  # classifiers have none
    configured = getattr(generation or model.config.get_text_config(), "eos_token_id", None)
    candidates = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    ids = [token_id for token_id in dict.fromkeys(candidates) if token_id is not None]
    if not ids:
        raise UserError(
            "the model has no end-of-sequence token: neither its tokenizer nor its generation_config names one"
        )
    return ids


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UserError` if the tokenizer has more tokens than the model."""
    known = input_embedding(model).num_embeddings
    if len(tokenizer) > known:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens and the model knows {known}; expected the tokenizer that the "
            "model was trained with"
        )


def _pad(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    width = max((len(row) for row in rows), default=1)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, span] = torch.tensor(row, dtype=torch.long)
        mask[i, span] = True
    return ids, mask


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int | Sequence[int]
) -> tuple[TokenContext, int]:
    """Prompts padded on the left, and how many of them were too long: those keep their last tokens.

    Args:
        max_tokens: maximum number of tokens of every prompt, or of each.
    """
    limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else list(max_tokens)
    if min(limits, default=1) < 1:
        raise UserError(
            f"no room for a prompt: {min(limits)} tokens are left of the context; expected a longer context "
            "or a smaller max_new_tokens"
        )
    rows = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    ids, mask = _pad([row[-limit:] for row, limit in zip(rows, limits, strict=True)], left=True)
    return TokenContext(ids, mask), sum(len(row) > limit for row, limit in zip(rows, limits, strict=True))


def encode_responses(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    stop_id: int,
    context_length: int,
    max_response_tokens: int,
) -> EncodedResponses:
    """Prompts and given responses, each response closed by ``stop_id``.

    A response longer than ``max_response_tokens`` keeps its first tokens and is not closed. A prompt that does not fit
    beside its own response keeps its last tokens. Both are counted.
    """
    rows: list[list[int]] = []
    truncated = 0
    for response in responses:
        ids = [*_token_ids(response, tokenizer, add_special_tokens=False), stop_id]
        truncated += len(ids) > max_response_tokens
        rows.append(ids[:max_response_tokens])
    actions, action_mask = _pad(rows, left=False)
    room = [context_length - len(row) for row in rows]
    context, truncated_prompts = encode_prompts(prompts, tokenizer, max_tokens=room)
    return EncodedResponses(context, actions, action_mask, truncated_prompts, truncated)


def decode_responses(
    actions: Int[Tensor, "B T"], action_mask: Bool[Tensor, "B T"], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Responses as text, without special tokens."""
    rows = [row[mask].tolist() for row, mask in zip(actions.cpu(), action_mask.cpu(), strict=True)]
    return tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
