"""What a tokenizer and its chat template put around texts and turns: the one place where token ids come from.

A text is tokenized as its tokenizer does it: with BOS where its post-processor adds one. A conversation is rendered by
the chat template, which writes its special tokens itself. The end of a turn is read off a rendered conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.language.limits import limited
from rlhf_lightning.models.language.spelling import (
    marked,
    marked_ids,
    plain_ids,
    special_tokens,
    spells_special_tokens,
    token_ids,
)
from rlhf_lightning.types import Message, Prompt

PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '\n\n' if not loop.first }}"
    "{{ 'Human' if message['role'] == 'user' else message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if loop.last and message['role'] == 'assistant' and not add_generation_prompt %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""For checkpoints without a chat template: the layout of the Anthropic HH data, and EOS behind the last reply."""

MOST_ADDED = 1_000_000
"""Characters that a chat template may add to any conversation, such as a description of how to call tools."""

MOST_SECONDS, MOST_GIGABYTES = 10.0, 1.0
"""Of rendering a conversation, which takes milliseconds."""

_PROBE: list[Message] = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "the-reply"}]


def plain_chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The plain template, which begins with BOS if the tokenizer puts one before a text."""
    special = set(tokenizer.all_special_ids)
    word = str(tokenizer.convert_ids_to_tokens(next(i for i in range(len(tokenizer)) if i not in special)))
    adds_bos = _around(word, tokenizer)[0] == [tokenizer.bos_token_id]
    return "{{ bos_token }}" + PLAIN_CHAT_TEMPLATE if adds_bos else PLAIN_CHAT_TEMPLATE


def prompt_text(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """A prompt as the model reads it: a conversation is rendered by the chat template, a text is unchanged."""
    return prompt if isinstance(prompt, str) else _rendered(prompt, tokenizer)


def answered_text(prompt: list[Message], response: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A conversation with the reply as its last turn, as the chat template renders it."""
    return _rendered([*prompt, {"role": "assistant", "content": response}], tokenizer, answered=True)


def prompt_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, encoder: bool = False) -> list[int]:
    """Token ids of a prompt.

    Args:
        encoder: for an encoder such as BERT: everything that its tokenizer puts around a text. A decoder continues the
            prompt, so what would stand behind it is left out.
    """
    before: list[int] = []
    behind: list[int] = []
    if isinstance(prompt, str):
        ids = plain_ids(prompt, tokenizer)
        before, behind = _around(prompt, tokenizer)
    else:
        ids = _conversation_ids(prompt, tokenizer)
        if encoder:
            before, behind = _around(prompt_text(prompt, tokenizer), tokenizer)
            ids = ids[len(before) :] if ids[: len(before)] == before else ids  # the template may write BOS, too
    ids = [*before, *ids, *(behind if encoder else [])]
    if not ids:
        raise UserError(f"the prompt {prompt!r} has no tokens; expected at least one")
    return ids


def _around(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer itself puts before a text, and behind it."""
    encoding = tokenizer(text, return_special_tokens_mask=True)
    ids, added = encoding["input_ids"], encoding["special_tokens_mask"]
    own = [place for place, by_the_tokenizer in enumerate(added) if not by_the_tokenizer]
    if own:
        return ids[: own[0]], ids[own[-1] + 1 :]
    count = int(ids[:1] == [tokenizer.bos_token_id])  # what stands before no text is BOS alone
    return ids[:count], ids[count:]


def closing_id(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, stop_id: int) -> int:
    """The token that ends the response to a prompt.

    Args:
        stop_id: closes a turn of a conversation; the continuation of a text ends with EOS, if the tokenizer has one.
    """
    eos = tokenizer.eos_token_id
    return eos if isinstance(prompt, str) and eos is not None else stop_id


def answered_ids(
    prompt: list[Message], response: str, tokenizer: PreTrainedTokenizerBase, *, prompt_alone: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation with its reply exactly as the chat template renders it, split where the reply begins.

    The second part begins with the first token that the prompt alone does not have, and goes on to the end of the
    text, even behind the end of the turn.

    Args:
        prompt_alone: `prompt_ids` of the prompt.
    """
    turns = [*prompt, {"role": "assistant", "content": response}]
    whole = _conversation_ids(turns, tokenizer, answered=True)
    pairs = zip(whole[:-1], prompt_alone, strict=False)
    start = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(whole) - 1, len(prompt_alone)))
    return whole[: max(start, 1)], whole[max(start, 1) :]


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a turn of the assistant: the first special token that the template writes behind its content.

    None if the tokenizer has no template, or one that writes no such token.
    """
    try:
        text = _rendered(_PROBE, tokenizer, answered=True)
    except UserError:  # a prompt that needs the template is refused with its own message
        return None
    behind = text.rpartition(_PROBE[-1]["content"])[2]
    special = special_tokens(tokenizer)
    found = [(behind.index(token), -len(token), token) for token in special if token in behind]
    return cast(int, tokenizer.convert_tokens_to_ids(min(found)[2])) if found else None


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token id that ends a response; the first one closes a turn of a conversation.

    These are the end of a turn, the tokenizer's EOS and those of the model's generation_config.
    """
    generation = getattr(model, "generation_config", None)  # classifiers have none
    configured = getattr(generation or model.config.get_text_config(), "eos_token_id", None)
    candidates = [turn_end(tokenizer), tokenizer.eos_token_id]
    candidates += configured if isinstance(configured, list) else [configured]
    ids = [token_id for token_id in dict.fromkeys(candidates) if token_id is not None]
    if not ids:
        raise UserError(
            "the model has no end-of-sequence token: neither its tokenizer nor its generation_config names one"
        )
    return ids


def without_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A rendered conversation for a tokenizer that will add BOS itself."""
    return text.removeprefix(tokenizer.bos_token or "")


def _rendered(turns: list[Message], tokenizer: PreTrainedTokenizerBase, *, answered: bool = False) -> str:
    """A conversation as the chat template renders it, which may be a stranger's program and is limited."""
    try:
        with limited("rendering by the checkpoint's chat template", seconds=MOST_SECONDS, gigabytes=MOST_GIGABYTES):
            text = str(tokenizer.apply_chat_template(turns, add_generation_prompt=not answered, tokenize=False))
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        what = "conversation" if answered else "prompt"
        raise UserError(f"the chat template cannot render the {what} {turns!r}: {error}") from error
    given = sum(len(turn["content"]) for turn in turns)
    if len(text) > MOST_ADDED + 100 * given:
        raise UserError(
            f"the chat template makes {len(text):,} characters out of {given:,}; expected a few for each turn"
        )
    return text


def _conversation_ids(turns: list[Message], tokenizer: PreTrainedTokenizerBase, *, answered: bool = False) -> list[int]:
    if not spells_special_tokens(turns, tokenizer):
        return token_ids(_rendered(turns, tokenizer, answered=answered), tokenizer)
    marked_turns, mark = marked(turns, tokenizer)
    return marked_ids(_rendered(marked_turns, tokenizer, answered=answered), tokenizer, mark)
