"""Preference pairs of the letters task, and what plain forward passes say of them, one response at a time."""

from __future__ import annotations

from typing import Any

import torch
from training_helpers import Letters, tiny

from rlhf_lightning.data.preferences import PreferenceDataModule
from rlhf_lightning.training.optimization import Optimization

STOP = 0
"""Id of the letters' end-of-sequence token."""


def build(algorithm: type, task: Letters, **settings: Any) -> Any:
    """An algorithm on a tiny model, which reports every step and judges seven short responses."""
    defaults = {"optimization": Optimization(1e-2), "max_new_tokens": 4, "eval_prompts": 7, "log_every": 1}
    return algorithm(task, settings.pop("backbone", None) or tiny(), **{**defaults, **settings})


def pairs(task: Letters, batch_size: int = 5, **settings: Any) -> PreferenceDataModule:
    """The task's own pairs."""
    return PreferenceDataModule(task, batch_size=batch_size, **settings)


def token_logprobs(model: Any, words: Any, prompt: str, response: str) -> torch.Tensor:
    """Log-probability of each token of a closed response, from one unpadded forward pass."""
    asked, answered = words(prompt)["input_ids"], [*words(response)["input_ids"], STOP]
    logits = model(torch.tensor([asked + answered])).logits[0, len(asked) - 1 : -1]
    return torch.stack([row.log_softmax(-1)[token] for row, token in zip(logits, answered, strict=True)])


def log_ratios(policy: Any, reference: Any, pair: Any) -> list[torch.Tensor]:
    """log π(y) − log π_ref(y) of the chosen and of the rejected response."""
    found = []
    for response in (pair.chosen, pair.rejected):
        own = token_logprobs(policy.model, policy.tokenizer, pair.prompt, response).sum()
        with torch.no_grad():
            other = token_logprobs(reference, policy.tokenizer, pair.prompt, response).sum()
        found.append(own - other)
    return found
