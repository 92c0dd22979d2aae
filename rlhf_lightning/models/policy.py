"""Policies: the distributions over actions that algorithms optimize."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.distributions import ActionDistribution
from rlhf_lightning.ops.kl import Direction
from rlhf_lightning.types import Context, TokenContext, Trajectories


@dataclass
class PolicyOutputs:
    """What a policy computes for given actions; 0 where the mask is False.

    Args:
        logprobs: log-probability of each action, in nats.
        entropy: of the distribution that each action is drawn from, in nats.
        kl: exact KL between this distribution and another policy's, in nats; None if there is no other policy.
        hidden: hidden state before each action, for a value head on the same trunk; None if the policy has no trunk.
    """

    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    kl: Float[Tensor, "B T"] | None
    hidden: Float[Tensor, "B T H"] | None = None


def masked_steps(values: Tensor, mask: Bool[Tensor, "B T"]) -> Tensor:
    """The numbers or vectors of the steps where the mask is True; 0 elsewhere, even if they are NaN."""
    return torch.where(mask if values.ndim == mask.ndim else mask[..., None], values, 0)


class Policy(nn.Module):
    """A distribution over actions given a context: what algorithms optimize.

    Args:
        temperature: sampling, log-probabilities, entropy and KL all describe the tempered distribution, such as
            softmax(logits / temperature).
    """

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise UserError(f"temperature must be a number above 0, got {temperature}")
        self.temperature = temperature

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    @property
    def precision(self) -> torch.dtype:
        """The dtype of log-probabilities: float64 for a float64 network, float32 otherwise."""
        return torch.float64 if next(self.parameters()).dtype == torch.float64 else torch.float32

    def evaluate(
        self,
        context: Context,
        actions: Tensor,
        action_mask: Bool[Tensor, "B T"],
        against: Self | None = None,
        direction: Direction = "reverse",
    ) -> PolicyOutputs:
        """Log-probabilities and entropies of given actions, and the exact KL to another policy.

        Args:
            against: the other policy; None for no KL.
            direction: ``reverse`` for KL(self‖against), ``forward`` for KL(against‖self).
        """
        actions = masked_steps(actions, action_mask)
        own = self.action_distribution(context, actions, action_mask)
        kl = None
        if against is not None:
            other = against.action_distribution(context, actions, action_mask)
            kl = masked_steps(own.kl(other) if direction == "reverse" else other.kl(own), action_mask)
        return PolicyOutputs(
            logprobs=masked_steps(own.logprobs(actions), action_mask),
            entropy=masked_steps(own.entropy(), action_mask),
            kl=kl,
        )

    def action_distribution(
        self, context: Context, actions: Tensor, action_mask: Bool[Tensor, "B T"]
    ) -> ActionDistribution:
        """The distribution that each action is drawn from; a policy whose logits take too much memory has none."""
        raise NotImplementedError

    def hidden_before(self, part: Trajectories) -> Float[Tensor, "B T H"]:
        """The hidden state that each action is drawn from, for a value head on the same trunk."""
        raise NotImplementedError(f"{type(self).__name__} has no trunk for a critic to share")

    def save(self, path: Path) -> None:
        """Write everything that another program needs to run the policy into a folder."""
        raise NotImplementedError


class Decoding(Protocol):
    """The state of a policy while it writes n responses token by token."""

    def distribution(self) -> Float[Tensor, "n V"]:
        """Log-probabilities of the next token."""
        ...

    def append(self, tokens: Int[Tensor, " n"]) -> None:
        """Append a token to each response."""
        ...

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Continue with these responses only; their order stays."""
        ...


class TextPolicy(Policy):
    """A policy whose actions are tokens: what decoding and evaluation require of it.

    Args:
        tokenizer: between tokens and text.
        temperature: of the policy, 0.7 to 1.
        stop_ids: tokens that end a response; the first one closes a given response.
        context_length: maximum number of tokens of prompt and response together.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, temperature: float, stop_ids: list[int], context_length: int
    ) -> None:
        super().__init__(temperature=temperature)
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.context_length = context_length

    def decoding(self, context: TokenContext, *, samples: int = 1) -> Decoding:
        """Start writing ``samples`` responses to each prompt; those to one prompt are consecutive rows."""
        raise NotImplementedError

    def fast_decoding(self, context: TokenContext, *, samples: int = 1, room: int) -> Decoding:
        """The same in the fastest way that the policy knows, for at most ``room`` tokens."""
        return self.decoding(context, samples=samples)
