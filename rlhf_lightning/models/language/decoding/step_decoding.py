"""`StepDecoding`: decoding by this package's own step of an architecture."""

from __future__ import annotations

import logging

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rlhf_lightning.models.language.decoding.affine import as_multiplied
from rlhf_lightning.models.language.decoding.gpt2 import GPT2Step
from rlhf_lightning.models.language.decoding.key_values import KeyValues
from rlhf_lightning.models.language.decoding.llama import LlamaStep
from rlhf_lightning.models.language.decoding.step import DecodingStep
from rlhf_lightning.models.language.trunk import feed
from rlhf_lightning.ops.logprobs import Head, tempered_log_softmax
from rlhf_lightning.types import TokenContext

log = logging.getLogger(__name__)

STEPS = (GPT2Step, LlamaStep)


def step_of(model: PreTrainedModel) -> DecodingStep | None:
    """This package's step of a model with its present weights; None where it has none for the architecture."""
    return next((step for kind in STEPS if (step := kind.of(model)) is not None), None)


class CheckedSteps:
    """Steps of one model: the first one is compared with the model's own forward, in case an architecture changes."""

    def __init__(self) -> None:
        self.agrees: bool | None = None

    def __call__(self, model: PreTrainedModel) -> DecodingStep | None:
        """The step of the model with its present weights; None where there is none, or none that agrees."""
        step = None if self.agrees is False else step_of(model)
        if self.agrees is None:
            self.agrees = step is not None and agrees(step, model)
            if not self.agrees:
                reason = (
                    "there is no faster step for" if step is None else "the faster step does not agree with that of"
                )
                log.info("decoding uses the model's own forward: %s %s", reason, type(model).__name__)
        return step if self.agrees else None


def agrees(step: DecodingStep, model: PreTrainedModel) -> bool:
    """Whether a step and the model's own forward give the same hidden states to two short texts."""
    ids = torch.arange(6, device=model.device).view(2, 3) % model.config.get_text_config().vocab_size
    mask = torch.tensor([[True, True, True], [False, True, True]], device=model.device)
    tokens, cache = ids[:, 0], DynamicCache(config=model.config)
    feed(model, ids, mask, cache)
    key_values = KeyValues(cache, mask, samples=1, room=1)
    expected = feed(model, tokens[:, None], torch.cat([mask, mask.new_ones(2, 1)], dim=1), cache)
    found = step(tokens, mask.sum(-1), key_values)
    multiplied = as_multiplied(found).dtype
    tolerance = 1e-3 if multiplied in (torch.float32, torch.float64) else 0.1
    return bool((found - expected).norm() <= tolerance * expected.norm())


class StepDecoding:
    """The state of a language model that writes responses.

    Args:
        head: hidden states to logits.
        samples: responses per prompt; the prompt is read once.
        room: maximum number of tokens that are appended.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        step: DecodingStep,
        head: Head,
        context: TokenContext,
        *,
        samples: int,
        room: int,
        temperature: float,
    ) -> None:
        self.step, self.head, self.temperature = step, head, temperature
        cache = DynamicCache(config=model.config)
        self.hidden = feed(model, context.input_ids, context.attention_mask, cache).repeat_interleave(samples, 0)
        self.positions = context.attention_mask.sum(-1).repeat_interleave(samples, 0)
        self.key_values = KeyValues(cache, context.attention_mask, samples=samples, room=room)

    def distribution(self) -> Float[Tensor, "n V"]:
        """Log-probabilities of the next token."""
        return tempered_log_softmax(self.head(self.hidden), temperature=self.temperature)

    def append(self, tokens: Int[Tensor, " n"]) -> None:
        """Append a token to each response."""
        self.hidden = self.step(tokens, self.positions, self.key_values)
        self.positions = self.positions + 1
        self.key_values.length += 1

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Continue with these responses, in this order."""
        self.key_values.keep(rows)
        self.hidden, self.positions = self.hidden[rows], self.positions[rows]
