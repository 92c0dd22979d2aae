"""Where environments are in their episodes, so that a run can be taken up where it stopped."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_lightning.errors import UserError


class EpisodeLog:
    """All environments of a run: how many episodes each has ended, and what was done and earned in the current one.

    Simulators cannot be saved, but they can be led to the same place again: by the seed of the episode, which follows
    from its number, and the actions since its start.

    Args:
        environments: how many there are, on all ranks.
    """

    def __init__(self, environments: int) -> None:
        self.numbers = [0] * environments
        self.returns = [0.0] * environments
        self.actions: list[Tensor | None] = [None] * environments

    def extend(
        self,
        actions: Int[Tensor, "B T"] | Float[Tensor, "B T D"],
        rewards: Float[Tensor, "B T"],
        ended: Bool[Tensor, "B T"],
    ) -> tuple[Float[Tensor, " E"], Int[Tensor, " E"]]:
        """Go on with a rollout; returns and lengths of the episodes that ended in it, their beginnings included."""
        actions, rewards = actions.cpu(), rewards.cpu()
        returns, lengths = [], []
        for row in range(len(actions)):
            start = 0
            for stop in (ended[row].nonzero().flatten() + 1).tolist():
                self._add(row, actions[row, start:stop], rewards[row, start:stop])
                returns.append(self.returns[row])
                lengths.append(len(self.actions[row]))
                self.numbers[row], self.returns[row], self.actions[row] = self.numbers[row] + 1, 0.0, None
                start = stop
            self._add(row, actions[row, start:], rewards[row, start:])
        return torch.tensor(returns, dtype=torch.float64), torch.tensor(lengths, dtype=torch.long)

    def _add(self, row: int, actions: Tensor, rewards: Float[Tensor, " t"]) -> None:
        before = self.actions[row]
        self.actions[row] = actions.clone() if before is None else torch.cat([before, actions])
        self.returns[row] += rewards.sum().item()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"numbers": list(self.numbers), "returns": list(self.returns), "actions": list(self.actions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            UserError: it has another number of environments.
        """
        if len(state["numbers"]) != len(self.numbers):
            raise UserError(
                f"data.init_args.environments is {len(self.numbers)}, and the checkpoint has {len(state['numbers'])}; "
                "expected the same number"
            )
        self.numbers, self.returns, self.actions = (list(state[name]) for name in ("numbers", "returns", "actions"))
