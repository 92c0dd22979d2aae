"""Perceptrons for environments: a policy and a critic."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.control.acting import Actor
from rlhf_lightning.models.control.layers import Activation, CategoricalHead, GaussianHead, orthogonal, perceptron
from rlhf_lightning.models.control.spaces import Spaces
from rlhf_lightning.models.critic import ValueNetwork
from rlhf_lightning.models.distributions import ActionDistribution
from rlhf_lightning.models.moments import ObservationNormalizer
from rlhf_lightning.models.policy import Policy, masked_steps
from rlhf_lightning.models.state import save_weights, seeded
from rlhf_lightning.types import Context, ObservationContext, Rollout, Trajectories

_POLICY, _ARGUMENTS = "policy.safetensors", "policy.json"


class ControlPolicy(Policy):
    """A perceptron that acts in an environment: categorical distributions over choices, a Gaussian over vectors.

    Args:
        temperature: divides logits, multiplies standard deviations.
        normalize_observations: whether observations are normalized by their running moments, which are part of the
            policy's weights.
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
        super().__init__(temperature=temperature)
        self.spaces = spaces
        self.hidden, self.activation = tuple(hidden), activation
        self.trunk = perceptron(spaces.observation_size, hidden, activation)
        width = (spaces.observation_size, *hidden)[-1]
        self.head = (
            GaussianHead(width, len(spaces.low), initial_log_std=initial_log_std)
            if spaces.choices is None
            else CategoricalHead(width, spaces.choices)
        )
        orthogonal(self.head.layer, gain=0.01)
        self.normalizer = ObservationNormalizer(spaces.observation_size) if normalize_observations else None

    def read(self, observations: Float[Tensor, "*N O"]) -> Float[Tensor, "*N O"]:
        """Raw observations as the networks read them, in the policy's precision and normalized if it normalizes."""
        observations = observations.to(self.precision)
        return observations if self.normalizer is None else self.normalizer(observations)

    def noise(self, keys: Int[Tensor, "*N"]) -> Float[Tensor, "*N K"]:
        """Noise for `act`, a function of the keys alone."""
        return self.head.noise(keys).to(self.precision)

    def act(self, observations: Float[Tensor, "*N O"], noise: Float[Tensor, "*N K"] | None = None) -> Tensor:
        """Actions for raw observations, before `Spaces.to_environment`.

        Args:
            noise: from `noise`; None for the most probable action.
        """
        return self._distribution(self.read(observations)).draw(noise)

    def actor(self) -> Callable[[np.ndarray, np.ndarray | None], np.ndarray]:
        """What `act` computes with the weights of now, on arrays: see `Actor`."""
        normalizer = self.normalizer
        return Actor(
            self.trunk,
            self.head,
            activation=self.activation,
            temperature=self.temperature,
            dtype=np.float64 if self.precision == torch.float64 else np.float32,
            moments=None if normalizer is None else (normalizer.moments.mean, normalizer.moments.variance),
        )

    def action_distribution(
        self, context: Context, actions: Tensor, action_mask: Bool[Tensor, "B T"]
    ) -> ActionDistribution:
        """In the state of each action: another policy reads the observations as this one has normalized them."""
        assert isinstance(context, ObservationContext)
        return self._distribution(masked_steps(context.observations, action_mask))

    def _distribution(self, observations: Float[Tensor, "*N O"]) -> ActionDistribution:
        return self.head(self.trunk(observations), temperature=self.temperature)

    def save(self, path: Path) -> None:
        """Write the weights, and the arguments from which `load` builds the network."""
        save_weights(self, path / _POLICY)
        arguments = {
            "spaces": asdict(self.spaces),
            "hidden": self.hidden,
            "activation": self.activation,
            "temperature": self.temperature,
            "normalize_observations": self.normalizer is not None,
        }
        (path / _ARGUMENTS).write_text(json.dumps(arguments, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> ControlPolicy:
        """The policy that was saved in a folder.

        Raises:
            UserError: there is none, or its files do not match.
        """
        path = Path(path)
        if not (path / _ARGUMENTS).is_file():
            raise UserError(f"{path} has no {_ARGUMENTS}; expected the export of a run in an environment")
        try:
            arguments = json.loads((path / _ARGUMENTS).read_text())
            described: dict[str, Any] = arguments.pop("spaces")
            spaces: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in described.items()
            }
            with seeded(0):
                policy = cls(Spaces(**spaces), **arguments)
            policy.load_state_dict(load_file(path / _POLICY))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} holds no policy that can be loaded: {reason}") from error
        return policy


class ControlCritic(ValueNetwork):
    """A perceptron with weights of its own that reads the same normalized observations as the policy."""

    def __init__(
        self, observation_size: int, hidden: Sequence[int], activation: Activation, outputs: int | None = None
    ) -> None:
        super().__init__()
        width = (observation_size, *hidden)[-1]
        self.outputs = outputs
        self.trunk = perceptron(observation_size, hidden, activation)
        self.score = orthogonal(nn.Linear(width, outputs or 1), gain=1.0)

    def values(self, part: Trajectories, trunk: Float[Tensor, "B T H"] | None = None) -> Float[Tensor, "B T *O"]:
        """Expected return before each action, 0 where the mask is False; ``trunk`` is not used."""
        assert isinstance(part.context, ObservationContext)
        return self._values(part.context.observations, part.action_mask)

    def next_values(self, part: Rollout, values: Float[Tensor, "B T *O"]) -> Float[Tensor, "B T *O"]:
        """Value after each action: 0 after termination, the value of the final observation after truncation."""
        assert isinstance(part.context, ObservationContext)
        return self._values(part.context.next_observations, part.action_mask & ~part.terminated)

    def _values(self, observations: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T *O"]:
        return masked_steps(self._unstacked(self.score(self.trunk(masked_steps(observations, mask)))), mask)

    def save(self, path: Path) -> None:
        """Write the weights; the moments of the observations belong to the policy."""
        save_weights(self, path / "critic.safetensors")
