"""The layers of `ControlPolicy` and `ControlCritic`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rlhf_lightning.models.distributions import Categorical, DiagonalGaussian, IndependentCategoricals
from rlhf_lightning.ops.logprobs import tempered_log_softmax
from rlhf_lightning.ops.noise import fold, gumbel, uniform

Activation: TypeAlias = Literal["tanh", "relu"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def perceptron(inputs: int, hidden: Sequence[int], activation: Activation) -> nn.Sequential:
    """Linear layers with an activation after each; orthogonal weights of gain √2, biases of 0.

    Initialization matters as much as the choice of algorithm: Engstrom et al. 2020, "Implementation Matters in Deep
    Policy Gradients", § 3. The output layers therefore have gain 0.01 in a policy (Andrychowicz et al. 2021, "What
    Matters for On-Policy Deep Actor-Critic Methods?", § 3.2) and 1 in a critic.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise((inputs, *hidden)):
        layers += [orthogonal(nn.Linear(before, after), gain=math.sqrt(2)), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def orthogonal(layer: nn.Linear, *, gain: float) -> nn.Linear:
    """The layer, initialized with orthogonal weights and biases of 0."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class CategoricalHead(nn.Module):
    """The output layer of a policy over choices, with one logit per choice.

    Args:
        choices: number of choices, or of those for each entry of a vector.
    """

    def __init__(self, width: int, choices: int | Sequence[int]) -> None:
        super().__init__()
        self.choices = choices
        self.layer = nn.Linear(width, choices if isinstance(choices, int) else sum(choices))

    def forward(self, hidden: Float[Tensor, "*N H"], *, temperature: float) -> Categorical | IndependentCategoricals:
        """The distributions."""
        logits = self.layer(hidden)
        if isinstance(self.choices, int):
            return Categorical(tempered_log_softmax(logits, temperature=temperature))
        return IndependentCategoricals(
            [
                Categorical(tempered_log_softmax(entry, temperature=temperature))
                for entry in logits.split(tuple(self.choices), dim=-1)
            ]
        )

    def noise(self, keys: Int[Tensor, "*N"]) -> Float[Tensor, "*N A"]:
        """Gumbel noise, one number per choice."""
        return gumbel(keys.flatten(), size=self.layer.out_features).unflatten(0, keys.shape)


class GaussianHead(nn.Module):
    """The output layer of a policy over vectors: a Gaussian whose standard deviations do not depend on the state.

    Schulman et al. 2015, "Trust Region Policy Optimization", appendix D.

    Args:
        initial_log_std: logarithm of the standard deviations at the start.
    """

    def __init__(self, width: int, length: int, *, initial_log_std: float) -> None:
        super().__init__()
        self.layer = nn.Linear(width, length)
        self.log_std = nn.Parameter(torch.full((length,), initial_log_std))

    def forward(self, hidden: Float[Tensor, "*N H"], *, temperature: float) -> DiagonalGaussian:
        """The distributions; the temperature multiplies the standard deviations."""
        return DiagonalGaussian(self.layer(hidden).to(self.log_std.dtype), self.log_std.exp() * temperature)

    def noise(self, keys: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Standard normal noise, by the inverse of the cumulative distribution function."""
        entries = torch.arange(self.layer.out_features, device=keys.device)
        return torch.special.ndtri(uniform(fold(keys[..., None], entries)))
