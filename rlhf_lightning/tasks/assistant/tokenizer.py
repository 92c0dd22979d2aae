"""A word-level tokenizer for the shop's small vocabulary, in the Hugging Face format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_lightning.tasks.assistant import demonstrations as responses
from rlhf_lightning.tasks.assistant import prompts
from rlhf_lightning.tasks.assistant.world import VALUES, VERBS, World, words_of

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
    """The tokenizer: one token per word, special tokens first, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *vocabulary(world)))}
    words = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
