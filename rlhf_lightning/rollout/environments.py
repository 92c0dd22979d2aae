"""Acting in environments: every stored step is an action of the policy on an observation that it has seen.

Automatic resets are off: they would either insert a step without an action or hide an episode's last observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_lightning.distributed import Stream, all_max, gather_rows, run_seed
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.control.policy import ControlPolicy
from rlhf_lightning.models.control.spaces import Spaces
from rlhf_lightning.ops.noise import fold, row_keys
from rlhf_lightning.rollout.episodes import EpisodeLog

if TYPE_CHECKING:
    from gymnasium.vector import SyncVectorEnv


@dataclass
class Steps:
    """T steps in each of n environments; 0 where ``action_mask`` is False.

    Args:
        observations: before each action, not normalized.
        next_observations: after each action, the last ones of an episode included.
        actions: of the policy, before `Spaces.to_environment`.
        action_mask: True at the steps that count.
        rewards: of the environment, not scaled, in float64.
        terminated: True at an action that ended its episode.
        truncated: True at an action after which the episode was cut at its time limit.
    """

    observations: Float[Tensor, "n T O"]
    next_observations: Float[Tensor, "n T O"]
    actions: Int[Tensor, "n T *D"] | Float[Tensor, "n T D"]
    action_mask: Bool[Tensor, "n T"]
    rewards: Float[Tensor, "n T"]
    terminated: Bool[Tensor, "n T"]
    truncated: Bool[Tensor, "n T"]

    @property
    def ended(self) -> Bool[Tensor, "n T"]:
        """True at an episode's last action, however it ended."""
        return self.terminated | self.truncated

    def gathered(self, count: int, device: torch.device) -> Steps:
        """The steps of all ranks, in global order.

        Args:
            count: number of environments on all ranks.
        """
        steps = self.rewards.shape[1]
        missing = int(all_max(torch.tensor(steps, device=device))) - steps

        def gather(own: Tensor) -> Tensor:
            return gather_rows(torch.cat([own, own.new_zeros(len(own), missing, *own.shape[2:])], dim=1), count)

        return Steps(**{f.name: gather(getattr(self, f.name).to(device)) for f in fields(self)})


class Environments:
    """Environments that are stepped together; an episode is a function of its number and of its actions.

    Args:
        vector: the environments, without automatic resets.
        spaces: of each environment.
        rows: their global numbers.
        stream: number of the use, so that training and evaluation have different episodes.
    """

    def __init__(self, vector: SyncVectorEnv, spaces: Spaces, *, rows: Int[Tensor, " n"], stream: Stream) -> None:
        self.vector, self.spaces, self.rows = vector, spaces, rows
        self.keys = row_keys(seed=run_seed(), stream=stream, iteration=0, rows=rows)

    def __len__(self) -> int:
        return len(self.rows)

    def begin(self, log: EpisodeLog) -> None:
        """Continue where the log ends: in a new one, at the first episode of every environment.

        Raises:
            UserError: the logged actions end an episode that they did not end before.
        """
        rows = self.rows.tolist()
        self.numbers = torch.tensor([log.numbers[row] for row in rows])
        self.observations = np.empty((len(rows), self.spaces.observation_size))
        self._reset(np.ones(len(rows), dtype=bool))
        for index, row in enumerate(rows):
            logged = log.actions[row]
            for action in () if logged is None else self.spaces.to_environment(logged.numpy()):
                self.observations[index], _, terminated, truncated, _ = self.vector.envs[index].step(action)
                if terminated or truncated:
                    raise UserError(
                        f"{self.spaces.environment} does not repeat an episode for the same seed and actions, so a run "
                        "in it cannot be resumed; expected one that draws its random numbers from its own np_random"
                    )

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Take one action in each environment; returns next observations, rewards, terminated and truncated flags.

        Afterwards, ``self.observations`` of environments whose episode has ended are those of the next episode.
        """
        count = len(self)
        shown = np.empty((count, self.spaces.observation_size), dtype=self.vector.single_observation_space.dtype)
        rewards, terminated, truncated = np.empty(count), np.empty(count, dtype=bool), np.empty(count, dtype=bool)
        # one by one: what the vector's own step does besides takes twice as long as the environments
        for i, action in enumerate(self.spaces.to_environment(actions)):
            shown[i], rewards[i], terminated[i], truncated[i], _ = self.vector.envs[i].step(action)
        next_observations = self.observations = shown.astype(np.float64)
        ended = terminated | truncated
        if ended.any():
            self.numbers += torch.from_numpy(ended)
            self._reset(ended)
        return next_observations, rewards, terminated, truncated

    def _reset(self, which: np.ndarray) -> None:
        seeds = fold(self.keys, self.numbers) & 0x7FFFFFFF  # simulators keep seeds in 32 bits
        self.observations = self.observations.copy()  # those of the last step are still in use
        for i in which.nonzero()[0].tolist():
            shown, _ = self.vector.envs[i].reset(seed=int(seeds[i]), options={})
            self.observations[i] = np.asarray(shown, dtype=self.vector.single_observation_space.dtype)

    def close(self) -> None:
        """Free the resources of the environments."""
        self.vector.close()


@torch.no_grad()
def play(
    policy: ControlPolicy,
    environments: Environments,
    *,
    steps: int,
    keys: Int[Tensor, " n"] | None = None,
    once: bool = False,
) -> Steps:
    """Act in every environment, from its current state.

    Args:
        steps: number of steps in each environment.
        keys: one noise key per environment; the noise of a step is a function of key and step alone. None for the most
            probable actions.
        once: count only the steps until the end of each environment's current episode.
    """
    actor, dtype = policy.actor(), np.float64 if policy.precision == torch.float64 else np.float32
    noise: Sequence[np.ndarray | None] = [None] * steps
    if keys is not None:  # in one call: many small tensors are slower
        noise = list(policy.noise(fold(keys, torch.arange(steps)[:, None])).numpy())
    counts = np.ones(len(environments), bool)
    record: list[dict[str, np.ndarray]] = []
    for t in range(steps):
        observations = environments.observations.astype(dtype)
        actions = actor(observations, noise[t])
        next_observations, rewards, terminated, truncated = environments.step(actions)
        step = {
            "observations": observations,
            "next_observations": next_observations.astype(dtype),
            "actions": actions,
            "action_mask": counts,
            "rewards": rewards,
            "terminated": terminated,
            "truncated": truncated,
        }
        record.append(step)
        if once:
            counts = counts & ~(terminated | truncated)
            if not counts.any():
                break
    arrays = {name: np.stack([step[name] for step in record], axis=1) for name in record[0]}
    for values in arrays.values():
        values[~arrays["action_mask"]] = 0
    return Steps(**{name: torch.from_numpy(values) for name, values in arrays.items()})
