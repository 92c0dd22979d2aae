"""The progress of environments in their episodes, so that a run can be resumed."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_lightning.errors import UserError


class EpisodeLog:
    """For each environment of a run: the number of finished episodes, and actions and return of the current one.

    Simulators cannot be saved, but their state can be reproduced from the seed of the episode, which is a function of
    its number, and the actions since its start.

    Args:
        environments: number of environments on all ranks.
    """

    def __init__(self, environments: int) -> None:
        self.numbers = [0] * environments
        self.returns = [0.0] * environments
        self.actions: list[Tensor | None] = [None] * environments

    def extend(
        self,
        actions: Int[Tensor, "B T *D"] | Float[Tensor, "B T D"],
        rewards: Float[Tensor, "B T"],
        ended: Bool[Tensor, "B T"],
    ) -> tuple[Float[Tensor, " E"], Int[Tensor, " E"]]:
        """Append a rollout; returns the returns and lengths of the episodes that ended in it, from their beginning."""
        actions, rewards = actions.cpu(), rewards.cpu()
        returns: list[float] = []
        lengths: list[int] = []
        for row in range(len(actions)):
            start = 0
            for stop in (ended[row].nonzero().flatten() + 1).tolist():
                lengths.append(len(self._add(row, actions[row, start:stop], rewards[row, start:stop])))
                returns.append(self.returns[row])
                self.numbers[row], self.returns[row], self.actions[row] = self.numbers[row] + 1, 0.0, None
                start = stop
            self._add(row, actions[row, start:], rewards[row, start:])
        return torch.tensor(returns, dtype=torch.float64), torch.tensor(lengths, dtype=torch.long)

    def _add(self, row: int, actions: Tensor, rewards: Float[Tensor, " t"]) -> Tensor:
        """Append steps to the current episode of an environment; returns all its actions so far."""
        before = self.actions[row]
        self.actions[row] = episode = actions.clone() if before is None else torch.cat([before, actions])
        self.returns[row] += rewards.sum().item()
        return episode

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"numbers": list(self.numbers), "returns": list(self.returns), "actions": list(self.actions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Raises:
            UserError: the checkpoint has another number of environments.
        """
        if len(state["numbers"]) != len(self.numbers):
            raise UserError(
                f"data.init_args.environments is {len(self.numbers)}, and the checkpoint has {len(state['numbers'])}; "
                "expected the same number"
            )
        self.numbers, self.returns, self.actions = (list(state[name]) for name in ("numbers", "returns", "actions"))
