"""`ForwardDecoding`: decoding with the model's own forward and the cache of transformers."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rlhf_lightning.models.language.trunk import feed
from rlhf_lightning.ops.logprobs import Head, tempered_log_softmax
from rlhf_lightning.types import TokenContext


class ForwardDecoding:
    """The state of a language model that writes responses: its key-value cache. Works for every architecture.

    Args:
        head: hidden states to logits.
        samples: responses per prompt; the prompt is read once, and its cache repeated.
    """

    def __init__(
        self, model: PreTrainedModel, head: Head, context: TokenContext, *, samples: int, temperature: float
    ) -> None:
        self.model, self.head, self.temperature = model, head, temperature
        self.cache = DynamicCache(config=model.config)
        self.mask = context.attention_mask
        self.hidden = feed(model, context.input_ids, self.mask, self.cache)
        if samples > 1:
            self.cache.batch_repeat_interleave(samples)
            self.hidden, self.mask = (x.repeat_interleave(samples, 0) for x in (self.hidden, self.mask))

    def distribution(self) -> Float[Tensor, "n V"]:
        """Log-probabilities of the next token."""
        return tempered_log_softmax(self.head(self.hidden), temperature=self.temperature)

    def append(self, tokens: Int[Tensor, " n"]) -> None:
        """Append a token to each response."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.hidden = feed(self.model, tokens[:, None], self.mask, self.cache)

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Continue with these responses only; this copies the cache."""
        self.cache.batch_select_indices(rows)
        self.mask, self.hidden = self.mask[rows], self.hidden[rows]
