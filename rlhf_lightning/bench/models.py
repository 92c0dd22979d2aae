"""Language models of several sizes with random weights: how fast they are does not depend on what they say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from rlhf_lightning.models.language.policy import LanguagePolicy
from rlhf_lightning.models.state import seeded
from rlhf_lightning.tasks.word_tokenizer import SPECIAL_TOKENS, build_word_tokenizer
from rlhf_lightning.types import TokenContext


@dataclass(frozen=True)
class Size:
    """An architecture and its sizes.

    Args:
        kv_heads: heads that have keys and values of their own; None for all.
        dtype: of the weights.
    """

    style: str
    width: int
    layers: int
    heads: int
    vocabulary: int
    kv_heads: int | None = None
    dtype: torch.dtype = torch.float32

    def config(self, *, context_length: int) -> PretrainedConfig:
        """The model's configuration."""
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
            settings["num_key_value_heads"] = self.kv_heads or self.heads
        return AutoConfig.for_model(self.style, **settings)

    def policy(self, device: torch.device, *, context_length: int) -> LanguagePolicy:
        """A policy with random weights, the same every time."""
        tokenizer = build_word_tokenizer(f"w{number}" for number in range(self.vocabulary - len(SPECIAL_TOKENS)))
        with seeded(0):
            model = AutoModelForCausalLM.from_config(self.config(context_length=context_length), dtype=self.dtype)
        return LanguagePolicy(model, tokenizer).to(device)

    def save(self, folder: Path, *, context_length: int, ends: int) -> None:
        """Write the model as a checkpoint.

        Args:
            ends: number of tokens that end a response, beside the one that does in any case.
        """
        policy = self.policy(torch.device("cpu"), context_length=context_length)
        policy.model.generation_config.eos_token_id = [2, *range(7, 7 + ends)]
        policy.save(folder)


SIZES = {
    "GPT-2, 0.9 M": Size("gpt2", width=128, layers=4, heads=4, vocabulary=512),
    "Llama, 6.3 M": Size("llama", width=256, layers=8, heads=8, vocabulary=512),
    "Llama, 25 M": Size("llama", width=512, layers=8, heads=8, vocabulary=512),
}

_CHAT: dict[str, Any] = {"vocabulary": 151_936, "kv_heads": 4, "dtype": torch.bfloat16}
SIZES_ON_GPU = {
    "Llama, 0.1 B": Size("llama", width=512, layers=12, heads=8, **_CHAT),
    "Llama, 0.4 B": Size("llama", width=1024, layers=24, heads=16, **_CHAT),
    "Llama, 1.4 B": Size("llama", width=2048, layers=24, heads=16, **_CHAT),
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

    def ends(self, size: Size) -> int:
        """How many tokens of the vocabulary must end a response so that half of ``length`` is the average."""
        return 2 * size.vocabulary // self.length

    @property
    def context_length(self) -> int:
        """Tokens of prompt and response."""
        return self.prompt_length + self.length


def workload(device: torch.device) -> tuple[dict[str, Size], Shape]:
    """The models, and the batch, that are measured on a device."""
    if device.type == "cuda":
        return SIZES_ON_GPU, Shape(prompts=64, prompt_length=64, length=256)
    return SIZES, Shape()


def prompts(policy: LanguagePolicy, count: int, *, length: int) -> TokenContext:
    """Prompts of random tokens, half as long as ``length`` to ``length``, on the policy's device."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(len(SPECIAL_TOKENS), policy.vocabulary, (count, length), generator=generator)
    lengths = torch.randint(length // 2, length + 1, (count,), generator=generator)
    lengths[0] = length
    mask = torch.arange(length) >= length - lengths[:, None]
    return TokenContext(ids * mask, mask).to(policy.device)
