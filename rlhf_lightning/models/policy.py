"""A language model as a policy: the distribution over responses that algorithms optimize."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.text import check_vocabulary, stop_ids
from rlhf_lightning.models.trunk import chunk_tokens, context_length, hidden_states, language_head, trainable
from rlhf_lightning.ops.logprobs import token_kl, token_statistics
from rlhf_lightning.types import TokenContext


@dataclass
class PolicyOutputs:
    """What a policy says about given actions; 0 where the mask is False.

    Args:
        logprobs: log-probability of each action, in nats.
        entropy: of the distribution that each action was drawn from, in nats.
        kl: exact KL to the other policy's distribution, in nats; None unless one was given.
        hidden: hidden state before each action, for a value head on the same trunk.
    """

    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    kl: Float[Tensor, "B T"] | None
    hidden: Float[Tensor, "B T H"]


class LanguagePolicy(nn.Module):
    """A causal language model that answers prompts token by token.

    Args:
        model: any transformers model with a language-model head.
        tokenizer: its tokenizer, with a chat template.
        temperature: of the policy, 0.7 to 1: sampling, log-probabilities, entropy and KL all describe
            softmax(logits / temperature).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise UserError(f"temperature must be a number above 0, got {temperature}")
        check_vocabulary(model, tokenizer)
        self.model = trainable(model)
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.stop_ids = stop_ids(model, tokenizer)

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and response together."""
        return context_length(self.model)

    def evaluate(
        self,
        context: TokenContext,
        actions: Int[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        against: LanguagePolicy | None = None,
    ) -> PolicyOutputs:
        """Log-probabilities and entropies of given actions, and the exact KL(self‖against)."""
        hidden = self.hidden_before(context, actions, action_mask)
        chosen = hidden[action_mask]
        head, chunk = language_head(self.model), chunk_tokens(self.model.config.get_text_config().vocab_size)
        logprobs, entropy = token_statistics(
            chosen, actions[action_mask], head=head, temperature=self.temperature, chunk_tokens=chunk
        )
        kl = None
        if against is not None:
            kl = token_kl(
                chosen,
                against.hidden_before(context, actions, action_mask)[action_mask],
                head=head,
                other_head=language_head(against.model),
                temperature=self.temperature,
                chunk_tokens=chunk,
            )
        return PolicyOutputs(
            logprobs=_spread(logprobs, action_mask),
            entropy=_spread(entropy, action_mask),
            kl=None if kl is None else _spread(kl, action_mask),
            hidden=hidden,
        )

    def hidden_before(
        self, context: TokenContext, actions: Int[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T H"]:
        """The hidden state that each action was drawn from."""
        hidden = hidden_states(self.model, context, actions, action_mask)
        start = context.input_ids.shape[1] - 1
        return hidden[:, start : start + actions.shape[1]]

    def save(self, path: Path) -> None:
        """Write model and tokenizer, chat template included, in the Hugging Face format."""
        self.model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)


def _spread(values: Float[Tensor, " N"], action_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Put the values of the positions that count back into their places."""
    full = torch.zeros(action_mask.shape, dtype=values.dtype, device=values.device)
    return full.masked_scatter(action_mask, values)
