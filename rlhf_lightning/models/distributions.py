"""Distributions over actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from rlhf_lightning.ops.logprobs import entropy_of, exact_kl


class ActionDistribution(ABC):
    """N distributions over actions; all quantities are in nats and differentiable."""

    @abstractmethod
    def logprobs(self, actions: Tensor) -> Float[Tensor, "*N"]:
        """Log-probability, or log-density, of one action under each distribution."""

    @abstractmethod
    def entropy(self) -> Float[Tensor, "*N"]:
        """Entropy, or differential entropy."""

    @abstractmethod
    def kl(self, other: Self) -> Float[Tensor, "*N"]:
        """Exact KL(self‖other)."""

    @abstractmethod
    def draw(self, noise: Tensor | None) -> Tensor:
        """A sample from each distribution, as a function of noise; the most probable action without noise."""


class Categorical(ActionDistribution):
    """Distributions over a number of choices, given by the log-probability of each."""

    def __init__(self, log_softmax: Float[Tensor, "*N A"]) -> None:
        self.log_softmax = log_softmax

    def logprobs(self, actions: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """Log-probability of one action under each distribution."""
        return self.log_softmax.gather(-1, actions[..., None]).squeeze(-1)

    def entropy(self) -> Float[Tensor, "*N"]:
        """Entropy in nats."""
        return entropy_of(self.log_softmax)

    def kl(self, other: Categorical) -> Float[Tensor, "*N"]:
        """Exact KL(self‖other)."""
        return exact_kl(self.log_softmax, other.log_softmax)

    def draw(self, noise: Float[Tensor, "*N A"] | None) -> Int[Tensor, "*N"]:
        """A sample by the Gumbel-max rule: argmax of log-probabilities plus Gumbel noise."""
        return (self.log_softmax if noise is None else self.log_softmax + noise).argmax(-1)


class IndependentCategoricals(ActionDistribution):
    """Distributions over vectors of D choices, which are drawn independently of each other.

    Args:
        entries: the distributions of each entry.
    """

    def __init__(self, entries: Sequence[Categorical]) -> None:
        self.entries = tuple(entries)

    def logprobs(self, actions: Int[Tensor, "*N D"]) -> Float[Tensor, "*N"]:
        """Log-probability of one action under each distribution."""
        pairs = zip(self.entries, actions.unbind(-1), strict=True)
        return torch.stack([entry.logprobs(chosen) for entry, chosen in pairs]).sum(0)

    def entropy(self) -> Float[Tensor, "*N"]:
        """Entropy in nats."""
        return torch.stack([entry.entropy() for entry in self.entries]).sum(0)

    def kl(self, other: IndependentCategoricals) -> Float[Tensor, "*N"]:
        """Exact KL(self‖other)."""
        pairs = zip(self.entries, other.entries, strict=True)
        return torch.stack([entry.kl(another) for entry, another in pairs]).sum(0)

    def draw(self, noise: Float[Tensor, "*N A"] | None) -> Int[Tensor, "*N D"]:
        """A sample by the Gumbel-max rule; the noise has one number per choice, entry after entry."""
        sizes = [entry.log_softmax.shape[-1] for entry in self.entries]
        parts = [None] * len(sizes) if noise is None else noise.split(sizes, dim=-1)
        return torch.stack([entry.draw(part) for entry, part in zip(self.entries, parts, strict=True)], dim=-1)


class DiagonalGaussian(ActionDistribution):
    """Distributions over vectors with independent entries; densities are those of the vector before any clipping."""

    def __init__(self, mean: Float[Tensor, "*N D"], std: Float[Tensor, " D"]) -> None:
        self.normal = Normal(mean, std, validate_args=False)

    def logprobs(self, actions: Float[Tensor, "*N D"]) -> Float[Tensor, "*N"]:
        """Log-density of one action under each distribution."""
        return self.normal.log_prob(actions).sum(-1)

    def entropy(self) -> Float[Tensor, "*N"]:
        """Differential entropy in nats."""
        return self.normal.entropy().sum(-1)

    def kl(self, other: DiagonalGaussian) -> Float[Tensor, "*N"]:
        """Exact KL(self‖other)."""
        return kl_divergence(self.normal, other.normal).sum(-1)

    def draw(self, noise: Float[Tensor, "*N D"] | None) -> Float[Tensor, "*N D"]:
        """A sample: mean plus standard deviation times standard normal noise."""
        return self.normal.mean if noise is None else self.normal.mean + self.normal.stddev * noise
