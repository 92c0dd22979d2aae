"""Tokenizers of a dozen words and models of two layers, with weights large enough that what they say differs."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlhf_lightning.models.language.critic import LanguageCritic
from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.models.reward.architectures import Architecture, JointEncoder
from rlhf_lightning.models.reward.networks import DecoderNetwork
from rlhf_lightning.models.reward.reward_model import RewardModel
from rlhf_lightning.ops.noise import row_keys
from rlhf_lightning.types import TokenContext

WORDS = ("red", "blue", "green", "cat", "dog", "cow", "sees", "likes", "the", "a")
TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m['role'] == 'user' else '<assistant> ' }}{{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 4},
    "mistral": {**_LLAMA, "sliding_window": 4},
    "gemma2": {
        **_LLAMA,
        "head_dim": 4,
        "query_pre_attn_scalar": 4,
        "sliding_window": 4,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": None,
    },
    "cohere": {**_LLAMA, "logit_scale": 0.25},
    "granite": {**_LLAMA, "logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "gpt_neox": _LLAMA,
    "opt": {
        "hidden_size": 16,
        "word_embed_proj_dim": 8,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "dropout": 0.3,
    },
}


def tokenizer(
    *words: str, pad: str | None = "<pad>", eos: str | None = "</s>", template: str | None = TEMPLATE
) -> PreTrainedTokenizerFast:
    """One token per word."""
    specials = ("<pad>", "</s>", "<unk>", "<user>", "<assistant>")
    ids = {word: i for i, word in enumerate((*specials, *(words or WORDS)))}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, eos_token=eos, unk_token="<unk>", chat_template=template
    )


def config(kind: str, **changes: Any) -> Any:
    """A tiny model's configuration."""
    length = {} if kind == "gpt2" else {"max_position_embeddings": 32}
    settings = {"vocab_size": 15, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    return AutoConfig.for_model(kind, **{**settings, **length, **ARCHITECTURES.get(kind, _LLAMA), **changes})


def model(kind: str = "gpt2", *, seed: int = 0, scale: float = 12.0, **changes: Any) -> PreTrainedModel:
    """A language model whose distributions are far from uniform."""
    return _built(AutoModelForCausalLM, config(kind, **changes), seed, scale)


def classifier(kind: str = "gpt2", *, seed: int = 0, scale: float = 12.0, **changes: Any) -> PreTrainedModel:
    """A model with one score per position."""
    return _built(AutoModelForSequenceClassification, config(kind, **{"num_labels": 1, **changes}), seed, scale)


def _built(auto: Any, settings: Any, seed: int, scale: float) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = auto.from_config(settings)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return built


def policy(
    kind: str = "gpt2", *, temperature: float = 1.0, words: PreTrainedTokenizerFast | None = None, **changes: Any
) -> LanguagePolicy:
    """A tiny policy."""
    return LanguagePolicy(model(kind, **changes), words or tokenizer(), temperature=temperature)


def critic(kind: str = "gpt2", **changes: Any) -> LanguageCritic:
    """A tiny critic."""
    return LanguageCritic(classifier(kind, **changes))


def reward_model(kind: str = "gpt2", *, words: PreTrainedTokenizerFast | None = None, **changes: Any) -> RewardModel:
    """A tiny reward model."""
    return RewardModel([DecoderNetwork(classifier(kind, **changes), words or tokenizer())])


def reward_model_on(backbone: Any, words: Any, architecture: Architecture = JointEncoder()) -> RewardModel:
    """A reward model at its starting point, as a backbone builds it."""
    return RewardModel([architecture.build(backbone, words, outputs=1, seed=None)])


def context(*rows: list[int], width: int = 0, fill: int = 0) -> TokenContext:
    """Prompts padded on the left with ``fill``, to at least ``width``."""
    width = max(width, *(len(row) for row in rows))
    ids = [[fill] * (width - len(row)) + row for row in rows]
    mask = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
    return TokenContext(torch.tensor(ids), torch.tensor(mask))


def keys(*rows: int, seed: int = 0, iteration: int = 0) -> torch.Tensor:
    """Noise keys of the given rows."""
    return row_keys(seed=seed, stream=0, iteration=iteration, rows=torch.tensor(rows))
