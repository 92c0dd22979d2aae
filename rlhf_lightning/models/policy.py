"""Policies: the distributions over actions that algorithms optimize."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError
from rlhf_lightning.ops.kl import Direction
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
