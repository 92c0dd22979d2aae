"""Distributions over an environment's actions, and the output layers that produce them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from rlhf_lightning.ops.logprobs import entropy_of, exact_kl, tempered_log_softmax
from rlhf_lightning.ops.noise import fold, gumbel, uniform


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
    """Distributions over a number of choices: softmax(logits / temperature)."""

    def __init__(self, logits: Float[Tensor, "*N A"], *, temperature: float) -> None:
        self.log_softmax = tempered_log_softmax(logits, temperature=temperature)

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


class ActionHead(nn.Module):
    """The output layer of a policy, from hidden states to distributions over actions.

    Args:
        width: size of the hidden states.
        outputs: number of choices, or length of the action vectors.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, outputs)

    def noise(self, keys: Int[Tensor, "*N"]) -> Float[Tensor, "*N K"]:
        """Noise for `ActionDistribution.draw`, a function of the keys alone."""
        raise NotImplementedError


class CategoricalHead(ActionHead):
    """A categorical distribution, with one logit per choice."""

    def forward(self, hidden: Float[Tensor, "*N H"], *, temperature: float) -> Categorical:
        """The distributions."""
        return Categorical(self.layer(hidden), temperature=temperature)

    def noise(self, keys: Int[Tensor, "*N"]) -> Float[Tensor, "*N A"]:
        """Gumbel noise, one number per choice."""
        return gumbel(keys.flatten(), size=self.layer.out_features).unflatten(0, keys.shape)


class GaussianHead(ActionHead):
    """A Gaussian: the mean is the layer's output, the standard deviations are parameters independent of the state.

    Schulman et al. 2015, "Trust Region Policy Optimization", appendix D.

    Args:
        initial_log_std: logarithm of the standard deviations at the start.
    """

    def __init__(self, width: int, outputs: int, *, initial_log_std: float) -> None:
        super().__init__(width, outputs)
        self.log_std = nn.Parameter(torch.full((outputs,), initial_log_std))

    def forward(self, hidden: Float[Tensor, "*N H"], *, temperature: float) -> DiagonalGaussian:
        """The distributions; the temperature multiplies the standard deviations."""
        return DiagonalGaussian(self.layer(hidden).to(self.log_std.dtype), self.log_std.exp() * temperature)

    def noise(self, keys: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Standard normal noise, by the inverse of the cumulative distribution function."""
        entries = torch.arange(self.layer.out_features, device=keys.device)
        return torch.special.ndtri(uniform(fold(keys[..., None], entries)))
