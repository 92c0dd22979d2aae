"""Special tokens that a text spells out: the plain text that they are, unless the tokenizer is told to read them.

A user who writes ``</s>`` does not end a sequence, and one who writes ``<|im_start|>system`` begins no turn: only the
post-processor and the chat template write special tokens.
"""

from __future__ import annotations

import json
import logging
import re
from functools import cache, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError

log = logging.getLogger(__name__)

READ = "special_tokens_in_text"
"""Setting of a tokenizer, kept in its configuration: texts may write special tokens."""


@lru_cache(maxsize=16)
def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """All special tokens, as a text would spell them."""
    added = tokenizer.added_tokens_decoder.values()
    return frozenset({*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)} - {""})


@lru_cache(maxsize=16)
def _pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds a special token; of two that begin alike the longer one."""
    longest_first = sorted(map(re.escape, special_tokens(tokenizer)), key=len, reverse=True)
    return re.compile(f"({'|'.join(longest_first) or '(?!)'})")


def spells_special_tokens(value: Any, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text, or some text in a conversation, spells out a special token that it must not write."""
    if tokenizer.init_kwargs.get(READ, False):
        return False
    if not isinstance(value, str):
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return any(spells_special_tokens(part, tokenizer) for part in parts)
    found = _pattern(tokenizer).search(value)
    if found:
        _say(found[0])
    return found is not None


@cache
def _say(token: str) -> None:
    log.warning(
        "a text spells out %s, a special token of the tokenizer: such texts are read as plain text and counted "
        "(backbone.init_args.special_tokens_in_text true reads them as special tokens)",
        token,
    )


def token_ids(text: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> list[int]:
    """Token ids of a text whose special tokens are meant, without those that the tokenizer adds."""
    try:
        return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"])
    except Exception as error:  # the library's own class is the plain one
        if "Missing [UNK]" not in str(error):
            raise
        raise UserError(
            f"the tokenizer has no token for some of {text!r:.80}, and none for unknown words; expected words of its "
            f"vocabulary, such as {', '.join(map(repr, sorted(tokenizer.get_vocab())[:5]))}"
        ) from error


def plain_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of somebody's text, in which nothing is a special token."""
    if not spells_special_tokens(text, tokenizer):
        return token_ids(text, tokenizer)
    ids = token_ids(text, tokenizer, split_special_tokens=True)
    found = special_tokens(tokenizer).intersection(tokenizer.convert_ids_to_tokens(ids))
    if not found - {tokenizer.unk_token}:
        return ids
    # A vocabulary that has the spelling as an ordinary entry, too: no entry goes over the cut.
    pieces = _broken(text, tokenizer, "\0").split("\0")
    return [token_id for piece in pieces for token_id in token_ids(piece, tokenizer)]


def _broken(value: Any, tokenizer: PreTrainedTokenizerBase, mark: str) -> Any:
    """The same texts with a mark behind the first letter of every special token that they spell."""
    if isinstance(value, str):
        return _pattern(tokenizer).sub(lambda found: found[0][0] + mark + found[0][1:], value)
    if isinstance(value, dict):
        return {key: _broken(part, tokenizer, mark) for key, part in value.items()}
    return [_broken(part, tokenizer, mark) for part in value] if isinstance(value, list) else value


def marked(turns: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> tuple[list[dict[str, str]], str]:
    """A conversation with a mark in every special token that it spells, and the mark, a letter that it does not use."""
    text = json.dumps(turns, ensure_ascii=False)
    mark = next(letter for letter in map(chr, range(0xE000, 0xF900)) if letter not in text)
    return _broken(turns, tokenizer, mark), mark


def marked_ids(text: str, tokenizer: PreTrainedTokenizerBase, mark: str) -> list[int]:
    """Token ids of a rendered `marked` conversation: what the template wrote is special, what has a mark is plain."""
    ids, unmarked = [], ""
    for piece in _pattern(tokenizer).split(text):
        if mark in piece:
            ids += token_ids(unmarked, tokenizer) + plain_ids(piece.replace(mark, ""), tokenizer)
            unmarked = ""
        else:
            unmarked += piece
    return ids + token_ids(unmarked, tokenizer)
