"""Policies, and the language model as one: the distribution that algorithms optimize."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.lora import save_merged
from rlhf_lightning.models.text import check_vocabulary, stop_ids
from rlhf_lightning.models.trunk import chunk_tokens, context_length, feed, hidden_states, language_head, trainable
from rlhf_lightning.ops.kl import Direction
from rlhf_lightning.ops.logprobs import tempered_log_softmax, token_kl, token_statistics
from rlhf_lightning.types import TokenContext


@dataclass
class PolicyOutputs:
    """What a policy says about given actions; 0 where the mask is False.

    Args:
        logprobs: log-probability of each action, in nats.
        entropy: of the distribution that each action was drawn from, in nats.
        kl: exact KL between this distribution and the other policy's, in nats; None unless one was given.
        hidden: hidden state before each action, for a value head on the same trunk, where there is one.
    """

    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    kl: Float[Tensor, "B T"] | None
    hidden: Float[Tensor, "B T H"] | None = None


class Policy(nn.Module):
    """A distribution over actions given a context: what algorithms optimize."""

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    @property
    def precision(self) -> torch.dtype:
        """Of its log-probabilities: float32 or better."""
        return torch.float64 if next(self.parameters()).dtype == torch.float64 else torch.float32

    def evaluate(
        self,
        context: Any,
        actions: Tensor,
        action_mask: Bool[Tensor, "B T"],
        against: Self | None = None,
    ) -> PolicyOutputs:
        """Log-probabilities and entropies of given actions, and the exact KL(self‖against)."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write everything that another program needs to run it."""
        raise NotImplementedError


class Decoding(Protocol):
    """A policy in the middle of writing n responses."""

    def distribution(self) -> Float[Tensor, "n V"]:
        """Log-probabilities of the next token."""
        ...

    def append(self, tokens: Int[Tensor, " n"]) -> None:
        """Go on behind these tokens."""
        ...

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Go on with these responses only."""
        ...


class TextPolicy(Policy):
    """A policy whose actions are tokens: what decoding and evaluation ask of it.

    Args:
        tokenizer: between its tokens and text.
        temperature: of the policy, 0.7 to 1: sampling, log-probabilities, entropy and KL all describe
            softmax(logits / temperature).
        stop_ids: tokens that end a response; the first closes a given one.
        context_length: most tokens of prompt and response together.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, temperature: float, stop_ids: list[int], context_length: int
    ) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise UserError(f"temperature must be a number above 0, got {temperature}")
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.stop_ids = stop_ids
        self.context_length = context_length

    def evaluate(
        self,
        context: TokenContext,
        actions: Int[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        against: Self | None = None,
        direction: Direction = "reverse",
    ) -> PolicyOutputs:
        """Log-probabilities and entropies of given actions, and the exact KL.

        Args:
            against: the other policy; None for no KL.
            direction: reverse for KL(self‖against), forward for KL(against‖self).
        """
        raise NotImplementedError

    def decoding(self, context: TokenContext, *, samples: int) -> Decoding:
        """Begin to write: ``samples`` responses to each prompt, one after the other."""
        raise NotImplementedError


class LanguagePolicy(TextPolicy):
    """A causal language model that answers prompts token by token.

    Args:
        model: any transformers model with a language-model head.
        tokenizer: its tokenizer, with a chat template.
        temperature: of the policy, 0.7 to 1: sampling, log-probabilities, entropy and KL all describe
            softmax(logits / temperature).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, temperature: float = 1.0) -> None:
        check_vocabulary(model, tokenizer)
        super().__init__(
            tokenizer,
            temperature=temperature,
            stop_ids=stop_ids(model, tokenizer),
            context_length=context_length(model),
        )
        self.model = trainable(model)

    def decoding(self, context: TokenContext, *, samples: int = 1) -> LanguageDecoding:
        """Read the prompts, once each."""
        return LanguageDecoding(self, context, samples)

    def evaluate(
        self,
        context: TokenContext,
        actions: Int[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        against: LanguagePolicy | None = None,
        direction: Direction = "reverse",
    ) -> PolicyOutputs:
        """Log-probabilities and entropies of given actions, and the exact KL."""
        hidden = self.hidden_before(context, actions, action_mask)
        chosen = hidden[action_mask]
        head, chunk = language_head(self.model), chunk_tokens(self.model.config.get_text_config().vocab_size)
        logprobs, entropy = token_statistics(
            chosen, actions[action_mask], head=head, temperature=self.temperature, chunk_tokens=chunk
        )
        kl = None
        if against is not None:
            sides = [
                (chosen, head),
                (against.hidden_before(context, actions, action_mask)[action_mask], language_head(against.model)),
            ]
            (first, first_head), (second, second_head) = sides if direction == "reverse" else reversed(sides)
            kl = token_kl(
                *(first, second),
                **{"head": first_head, "other_head": second_head},
                **{"temperature": self.temperature, "chunk_tokens": chunk},
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
        save_merged(self.model, path)
        self.tokenizer.save_pretrained(path)


class LanguageDecoding:
    """A language model with its key-value cache.

    Args:
        policy: the model.
        context: prompts.
        samples: responses per prompt: it is read once, and its cache repeated.
    """

    def __init__(self, policy: LanguagePolicy, context: TokenContext, samples: int) -> None:
        self.policy = policy
        self.head = language_head(policy.model)
        self.cache = DynamicCache(config=policy.model.config)
        self.mask = context.attention_mask
        self.hidden = feed(policy.model, context.input_ids, self.mask, self.cache)
        if samples > 1:
            self.cache.batch_repeat_interleave(samples)
            self.hidden, self.mask = (x.repeat_interleave(samples, 0) for x in (self.hidden, self.mask))

    def distribution(self) -> Float[Tensor, "n V"]:
        """Log-probabilities of the next token."""
        return tempered_log_softmax(self.head(self.hidden), temperature=self.policy.temperature)

    def append(self, tokens: Int[Tensor, " n"]) -> None:
        """Feed the tokens."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.hidden = feed(self.policy.model, tokens[:, None], self.mask, self.cache)

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Drop the other rows of the cache, which copies it."""
        self.cache.batch_select_indices(rows)
        self.mask, self.hidden = self.mask[rows], self.hidden[rows]


def _spread(values: Float[Tensor, " N"], action_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Put the values of the positions that count back into their places."""
    full = torch.zeros(action_mask.shape, dtype=values.dtype, device=values.device)
    return full.masked_scatter(action_mask, values)
