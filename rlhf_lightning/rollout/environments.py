"""Acting in environments: every stored step was taken by the policy, from an observation that it was shown.

Automatic resets are off, since they either insert a step that nobody took or hide an episode's last observation.
"""

from __future__ import annotations

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
    """What n environments showed and gave in T steps; zeros where a step does not count.

    Args:
        observations: before each action, as the environment showed them.
        next_observations: after it: an episode's last ones too.
        actions: as the policy drew them.
        action_mask: True at the steps that count.
        rewards: as the environment gave them, in float64.
        terminated: True at an action that ended its episode.
        truncated: True at an action after which the episode was cut at its time limit.
    """

    observations: Float[Tensor, "n T O"]
    next_observations: Float[Tensor, "n T O"]
    actions: Int[Tensor, "n T"] | Float[Tensor, "n T D"]
    action_mask: Bool[Tensor, "n T"]
    rewards: Float[Tensor, "n T"]
    terminated: Bool[Tensor, "n T"]
    truncated: Bool[Tensor, "n T"]

    @property
    def ended(self) -> Bool[Tensor, "n T"]:
        """True at an episode's last action, however it ended."""
        return self.terminated | self.truncated

    def gathered(self, count: int, device: torch.device) -> Steps:
        """Those of all ranks, in global order.

        Args:
            count: environments of all ranks.
        """
        steps = self.rewards.shape[1]
        missing = int(all_max(torch.tensor(steps, device=device))) - steps

        def gather(own: Tensor) -> Tensor:
            return gather_rows(torch.cat([own, own.new_zeros(len(own), missing, *own.shape[2:])], dim=1), count)

        return Steps(**{f.name: gather(getattr(self, f.name).to(device)) for f in fields(self)})


class Environments:
    """Environments that are stepped together; an episode is a function of its number and of the actions taken in it.

    Args:
        vector: the environments, which must not reset themselves.
        spaces: theirs.
        rows: their global numbers.
        stream: keeps apart the episodes of training and evaluation.
    """

    def __init__(self, vector: SyncVectorEnv, spaces: Spaces, *, rows: Int[Tensor, " n"], stream: Stream) -> None:
        self.vector, self.spaces, self.rows = vector, spaces, rows
        self.keys = row_keys(seed=run_seed(), stream=stream, iteration=0, rows=rows)
        self.numbers = torch.zeros_like(rows)
        self.observations = np.zeros((len(rows), spaces.observation_size))

    def __len__(self) -> int:
        return len(self.rows)

    def begin(self, log: EpisodeLog | None = None) -> None:
        """Start over: every environment with its first episode, or where the log has left it.

        Raises:
            UserError: the same actions now end an episode that they did not end before.
        """
        rows = self.rows.tolist()
        self.numbers = torch.tensor([log.numbers[row] if log else 0 for row in rows])
        self._reset(np.ones(len(rows), dtype=bool))
        for place, row in enumerate(rows if log else ()):
            done = log.actions[row]
            for action in () if done is None else self.spaces.taken(done.numpy()):
                self.observations[place], _, terminated, truncated, _ = self.vector.envs[place].step(action)
                if terminated or truncated:
                    raise UserError(
                        f"{self.spaces.environment} does not repeat an episode for the same seed and actions, so a run "
                        "in it cannot be resumed; expected one that draws its random numbers from its own np_random"
                    )

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Take an action in each: next observations, rewards, whether it terminated, whether it was truncated.

        Where an episode has ended, ``observations`` are those of the next one when this returns.
        """
        following, rewards, terminated, truncated, _ = self.vector.step(self.spaces.taken(actions))
        following = self.observations = following.astype(np.float64)
        ended = terminated | truncated
        if ended.any():
            self.numbers += torch.from_numpy(ended)
            self._reset(ended)
        return following, rewards, terminated, truncated

    def _reset(self, which: np.ndarray) -> None:
        seeds = fold(self.keys, self.numbers) & 0x7FFFFFFF  # simulators keep seeds in 32 bits
        observations, _ = self.vector.reset(seed=seeds.tolist(), options={"reset_mask": which})
        self.observations = observations.astype(np.float64)  # those of the others too, as they were

    def close(self) -> None:
        """Free what they hold."""
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
    """Act in every environment, from where it is.

    Args:
        steps: to take in each.
        keys: one noise key per environment: the noise of a step is a function of key and step alone. None takes the
            most probable action.
        once: only what is left of an environment's current episode counts.
    """
    record = _blank(environments.spaces, (steps, len(environments)), policy.precision)
    noise = [None] * steps
    if keys is not None:  # all at once: small tensors cost more than large ones
        noise = policy.noise(fold(keys, torch.arange(steps)[:, None]).to(policy.device)).unbind()
    counts = np.ones(len(environments), bool)
    for t in range(steps):
        record["observations"][t] = environments.observations
        observations = torch.from_numpy(record["observations"][t]).to(policy.device)
        record["actions"][t] = policy.act(observations, noise[t]).cpu().numpy()
        outcome = environments.step(record["actions"][t])
        for name, values in zip(("next_observations", "rewards", "terminated", "truncated"), outcome, strict=True):
            record[name][t] = values
        record["action_mask"][t] = counts
        if once:
            counts = counts & ~(record["terminated"][t] | record["truncated"][t])
            if not counts.any():
                break
    for values in record.values():
        values[~record["action_mask"]] = 0
    taken = {name: torch.from_numpy(values[: t + 1]) for name, values in record.items()}
    return Steps(**{name: values.transpose(0, 1).contiguous() for name, values in taken.items()})


def _blank(spaces: Spaces, shape: tuple[int, int], precision: torch.dtype) -> dict[str, np.ndarray]:
    """Room for the fields of `Steps`, time first."""
    dtype = np.float64 if precision == torch.float64 else np.float32
    shown = (*shape, spaces.observation_size)
    return {
        "observations": np.zeros(shown, dtype),
        "next_observations": np.zeros(shown, dtype),
        "actions": np.zeros((*shape, len(spaces.low)), dtype) if spaces.continuous else np.zeros(shape, np.int64),
        "rewards": np.zeros(shape),
        **{name: np.zeros(shape, bool) for name in ("terminated", "truncated", "action_mask")},
    }
