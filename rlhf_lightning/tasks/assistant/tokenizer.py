"""The vocabulary of the assistant task and its word-level tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_lightning.tasks.assistant import demonstrations as responses
from rlhf_lightning.tasks.assistant import prompts
from rlhf_lightning.tasks.assistant.world import VALUES, VERBS, World, words_of
from rlhf_lightning.tasks.word_tokenizer import build_word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def vocabulary(world: World) -> tuple[str, ...]:
    """Every word of every prompt and every response, in alphabetical order."""
    texts = [
        *(*world.entities, *VALUES, *VERBS.values(), *(value for row in VALUES.values() for value in row)),
        *(text for hazard in world.hazards for text in (hazard.action, hazard.tool)),
        *(*prompts.REQUEST_PHRASINGS, *prompts.HAZARD_PHRASINGS, "is are the , and"),
        *(*responses.OPENERS, *responses.CLOSERS, *responses.CONNECTORS, "the of is its it ."),
        *(*responses.REFUSAL_OPENERS, *responses.REFUSALS, *responses.REFUSAL_CLOSERS),
        *responses.COMPLIANCES,
    ]
    blanks = dict.fromkeys(("list", "entity", "are", "action", "tool"), "")
    return tuple(sorted({word for text in texts for word in words_of(text.format(**blanks))}))


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, special tokens first, and a chat template."""
    return build_word_tokenizer(vocabulary(world))
