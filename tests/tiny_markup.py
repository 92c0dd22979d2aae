"""Tokenizers of single bytes with the special tokens, post-processors and chat templates of well-known families."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' else ' ' + m['content'] + eos_token }}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
VOCABULARY = 272
"""Number of embeddings of models for these tokenizers: more than any of them has tokens."""


def tokenizer(
    *special: str, single: str | None = None, template: str | None = None, **named: str | None
) -> PreTrainedTokenizerFast:
    """One token per byte, and then the special tokens.

    Args:
        single: what the post-processor makes of a text, such as ``<s> $A``.
        named: ``bos_token``, ``eos_token`` and the like, each one of ``special``.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    if single is not None:
        ids = [(token, backend.token_to_id(token)) for token in special]
        backend.post_processor = TemplateProcessing(single=single, pair=None, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        additional_special_tokens=[token for token in special if token not in named.values()],
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **named,
    )


def llama(single: str | None = "<s> $A", **changes: Any) -> PreTrainedTokenizerFast:
    """A base model's: BOS by the post-processor, no chat template."""
    return tokenizer("<s>", "</s>", single=single, **{"bos_token": "<s>", "eos_token": "</s>", **changes})


def chatml(**changes: Any) -> PreTrainedTokenizerFast:
    """Turns end with another token than texts."""
    tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return tokenizer(*tokens, template=CHATML, **{"eos_token": "<|endoftext|>", **changes})


def gemma(**changes: Any) -> PreTrainedTokenizerFast:
    """BOS by the template and by the post-processor."""
    tokens = ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return tokenizer(*tokens, single="<bos> $A", template=GEMMA, **{**names, **changes})


def mistral(**changes: Any) -> PreTrainedTokenizerFast:
    """A prompt has no beginning of the reply, which the template separates by a space."""
    return tokenizer(
        *("<s>", "</s>", "<unk>", "[INST]", "[/INST]"),
        single="<s> $A",
        template=MISTRAL,
        **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **changes},
    )


def llama_3(**changes: Any) -> PreTrainedTokenizerFast:
    """Turns end with a token of their own, texts with another."""
    return tokenizer(
        *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        single="<|begin_of_text|> $A",
        template=LLAMA_3,
        **{"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", **changes},
    )


FAMILIES = {"chatml": chatml, "gemma": gemma, "mistral": mistral, "llama_3": llama_3}
ENDS = {"chatml": "<|im_end|>", "gemma": "<end_of_turn>", "mistral": "</s>", "llama_3": "<|eot_id|>"}
"""The token that ends a turn."""
