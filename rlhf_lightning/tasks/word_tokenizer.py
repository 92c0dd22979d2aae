"""A word-level tokenizer for the small vocabulary of a generated task, in the Hugging Face format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
ROLES = ("<user>", "<assistant>", "<system>")
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK, *ROLES)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ ' ' }}{% endif %}"
    "{{ '<' + message['role'] + '> ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)
"""``<user> tell me … <assistant> the lamp is red . <eos>``"""


def build_word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per word, special tokens first, with a chat template."""
    return word_level(
        (*SPECIAL_TOKENS, *words),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
    )


def word_level(tokens: Iterable[str], **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of the given tokens, separated by white space; ``options`` are those of `PreTrainedTokenizerFast`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, padding_side="left", **options
    )
