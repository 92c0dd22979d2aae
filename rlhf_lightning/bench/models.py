"""Language models of several sizes with random weights: how fast they are does not depend on what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.models.state import seeded
from rlhf_lightning.tasks.word_tokenizer import SPECIAL_TOKENS, build_word_tokenizer
from rlhf_lightning.types import TokenContext


@dataclass(frozen=True)
class Size:
    """An architecture and its sizes."""

    style: str
    width: int
    layers: int
    heads: int
    vocabulary: int

    def policy(self, device: torch.device, *, context_length: int) -> LanguagePolicy:
        """A policy with random weights, the same every time."""
        settings: dict[str, Any] = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": context_length,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        if self.style == "llama":
            settings["intermediate_size"] = 8 * self.width // 3
        tokenizer = build_word_tokenizer(f"w{number}" for number in range(self.vocabulary - len(SPECIAL_TOKENS)))
        with seeded(0):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(self.style, **settings))
        return LanguagePolicy(model, tokenizer).to(device)


SIZES = {
    "GPT-2, 0.9 M": Size("gpt2", width=128, layers=4, heads=4, vocabulary=512),
    "Llama, 6.3 M": Size("llama", width=256, layers=8, heads=8, vocabulary=512),
    "Llama, 25 M": Size("llama", width=512, layers=8, heads=8, vocabulary=512),
}


@dataclass(frozen=True)
class Shape:
    """Of what is drawn, or learned from: several responses to each of some prompts, in tokens."""

    prompts: int = 16
    samples: int = 4
    prompt_length: int = 24
    length: int = 64

    @property
    def responses(self) -> int:
        """The number of responses."""
        return self.prompts * self.samples

    @property
    def context_length(self) -> int:
        """Tokens of prompt and response."""
        return self.prompt_length + self.length


def prompts(policy: LanguagePolicy, count: int, *, length: int) -> TokenContext:
    """Prompts of random tokens, half as long as ``length`` to ``length``, on the policy's device."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(len(SPECIAL_TOKENS), policy.vocabulary, (count, length), generator=generator)
    lengths = torch.randint(length // 2, length + 1, (count,), generator=generator)
    lengths[0] = length
    mask = torch.arange(length) >= length - lengths[:, None]
    return TokenContext(ids * mask, mask).to(policy.device)
