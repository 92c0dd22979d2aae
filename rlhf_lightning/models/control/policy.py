"""Perceptrons that act in an environment, and that say what its states are worth."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.control.actions import (
    ActionDistribution,
    ActionHead,
    CategoricalHead,
    GaussianHead,
)
from rlhf_lightning.models.control.spaces import Spaces
from rlhf_lightning.models.critic import ValueNetwork
from rlhf_lightning.models.moments import ObservationNormalizer
from rlhf_lightning.models.policy import Policy, PolicyOutputs
from rlhf_lightning.types import ObservationContext, Rollout

Activation: TypeAlias = Literal["tanh", "relu"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
_POLICY, _SIZES = "policy.safetensors", "policy.json"


def perceptron(inputs: int, hidden: Sequence[int], activation: Activation) -> nn.Sequential:
    """Linear layers with an activation after each; orthogonal weights of gain √2, no biases at first.

    How networks start matters as much as which algorithm trains them: Engstrom et al. 2020, "Implementation Matters in
    Deep Policy Gradients", § 3. Hence also the last layers: gain 0.01 for a policy (Andrychowicz et al. 2021, "What
    Matters for On-Policy Deep Actor-Critic Methods?", § 3.2), 1 for a critic.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise((inputs, *hidden)):
        layers += [orthogonal(nn.Linear(before, after), gain=math.sqrt(2)), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def orthogonal(layer: nn.Linear, *, gain: float) -> nn.Linear:
    """The layer with orthogonal weights and no biases."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class ControlPolicy(Policy):
    """A perceptron that acts in an environment: a categorical distribution over choices, a Gaussian over vectors.

    Args:
        spaces: of the environment.
        hidden: sizes of the hidden layers.
        activation: after each of them.
        temperature: of the policy: divides logits, multiplies standard deviations.
        normalize_observations: whether observations are scaled by their running moments, which are part of the
            policy: checkpoints and exports have them.
        initial_log_std: logarithm of a Gaussian's standard deviations at the start.
    """

    def __init__(
        self,
        spaces: Spaces,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        temperature: float = 1.0,
        normalize_observations: bool = False,
        initial_log_std: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise UserError(f"temperature must be a number above 0, got {temperature}")
        self.spaces = spaces
        self.hidden, self.activation = tuple(hidden), activation
        self.temperature = temperature
        self.trunk = perceptron(spaces.observation_size, hidden, activation)
        width = (spaces.observation_size, *hidden)[-1]
        self.head: ActionHead = (
            GaussianHead(width, len(spaces.low), initial_log_std=initial_log_std)
            if spaces.continuous
            else CategoricalHead(width, spaces.choices)
        )
        orthogonal(self.head.layer, gain=0.01)
        self.normalizer = ObservationNormalizer(spaces.observation_size) if normalize_observations else None

    def read(self, observations: Float[Tensor, "*N O"]) -> Float[Tensor, "*N O"]:
        """Observations of the environment as the networks read them, and as an `ObservationContext` holds them."""
        observations = observations.to(self.precision)
        return observations if self.normalizer is None else self.normalizer(observations)

    def noise(self, keys: Int[Tensor, "*N"]) -> Float[Tensor, "*N K"]:
        """What `act` draws actions with: a function of the keys, and of nothing else."""
        return self.head.noise(keys).to(self.precision)

    def act(self, observations: Float[Tensor, "*N O"], noise: Float[Tensor, "*N K"] | None = None) -> Tensor:
        """Actions for observations as the environment shows them, before `Spaces.taken`.

        Args:
            noise: from `noise`; None takes the most probable action.
        """
        distribution = self._distribution(self.read(observations))
        return distribution.mode() if noise is None else distribution.draw(noise)

    def evaluate(
        self,
        context: ObservationContext,
        actions: Int[Tensor, "B T"] | Float[Tensor, "B T D"],
        action_mask: Bool[Tensor, "B T"],
        against: ControlPolicy | None = None,
    ) -> PolicyOutputs:
        """Log-probabilities and entropies of given actions, and the exact KL(self‖against).

        The other policy gets the observations as this one reads them.
        """
        observations = kept(context.observations, action_mask)
        distribution = self._distribution(observations)
        numbers = [distribution.logprobs(kept(actions, action_mask)), distribution.entropy()]
        if against is not None:
            numbers.append(distribution.kl(against._distribution(observations)))
        logprobs, entropy, *kl = (kept(number, action_mask) for number in numbers)
        return PolicyOutputs(logprobs, entropy, kl[0] if kl else None)

    def _distribution(self, observations: Float[Tensor, "*N O"]) -> ActionDistribution:
        return self.head(self.trunk(observations), temperature=self.temperature)

    def save(self, path: Path) -> None:
        """Write weights and moments, and what `load` builds the network from."""
        path.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), path / _POLICY)
        (path / _SIZES).write_text(json.dumps({"spaces": asdict(self.spaces), **self._sizes()}, indent=2) + "\n")

    def _sizes(self) -> dict[str, Any]:
        return {
            "hidden": self.hidden,
            "activation": self.activation,
            "temperature": self.temperature,
            "normalize_observations": self.normalizer is not None,
        }

    @classmethod
    def load(cls, path: str | Path) -> ControlPolicy:
        """The policy that was saved in a folder.

        Raises:
            UserError: there is none, or its files do not fit together.
        """
        path = Path(path)
        if not (path / _SIZES).is_file():
            raise UserError(f"{path} has no {_SIZES}; expected the export of a run in an environment")
        try:
            sizes = json.loads((path / _SIZES).read_text())
            spaces = sizes.pop("spaces")
            bounds = {name: tuple(spaces.pop(name)) for name in ("low", "high")}
            with seeded(0):
                policy = cls(Spaces(**spaces, **bounds), **sizes)
            policy.load_state_dict(load_file(path / _POLICY))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} holds no policy that can be loaded: {reason}") from error
        return policy


class ControlCritic(ValueNetwork):
    """A perceptron of its own that reads what the policy reads.

    Args:
        observation_size: length of an observation.
        hidden: sizes of the hidden layers.
        activation: after each of them.
        outputs: number of objectives that get a value each; None for one value in all.
    """

    def __init__(
        self, observation_size: int, hidden: Sequence[int], activation: Activation, outputs: int | None = None
    ) -> None:
        super().__init__()
        width = (observation_size, *hidden)[-1]
        self.outputs = outputs
        self.trunk = perceptron(observation_size, hidden, activation)
        self.score = orthogonal(nn.Linear(width, outputs or 1), gain=1.0)

    def values(
        self,
        context: ObservationContext,
        actions: Tensor,
        action_mask: Bool[Tensor, "B T"],
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B T *O"]:
        """Expected return before each action, 0 where the mask is False; ``trunk`` is not used."""
        return self._values(context.observations, action_mask)

    def next_values(self, part: Rollout, values: Float[Tensor, "B T *O"]) -> Float[Tensor, "B T *O"]:
        """Value after each action: 0 after termination, that of the final observation after truncation."""
        return self._values(part.context.next_observations, part.action_mask & ~part.terminated)

    def _values(self, observations: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T *O"]:
        values = self.score(self.trunk(kept(observations, mask)))
        return kept(values.squeeze(-1) if self.outputs is None else values, mask)

    def save(self, path: Path) -> None:
        """Write the weights; the moments of the observations are the policy's."""
        path.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), path / "critic.safetensors")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, random numbers are those of the seed; outside they go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def kept(values: Tensor, mask: Bool[Tensor, "B T"]) -> Tensor:
    """The values where the mask is True, 0 elsewhere, whatever stands there."""
    return torch.where(mask if values.ndim == mask.ndim else mask[..., None], values, 0)
