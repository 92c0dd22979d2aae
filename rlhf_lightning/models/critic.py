"""Critics: the expected return before and after each action."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.ops.advantages import following_values
from rlhf_lightning.types import Rollout, Trajectories


class ValueNetwork(nn.Module):
    """Expected return before each action of a trajectory: one number, or one for each of several objectives O."""

    outputs: int | None = None
    """Number of objectives that get a value each; None for a single value."""

    def values(self, part: Trajectories, trunk: Float[Tensor, "B T H"] | None = None) -> Float[Tensor, "B T *O"]:
        """Value before each action.

        Args:
            trunk: the policy's hidden state before each action, for critics that share its trunk.
        """
        raise NotImplementedError

    def next_values(self, part: Rollout, values: Float[Tensor, "B T *O"]) -> Float[Tensor, "B T *O"]:
        """Value after each action; 0 where the episode terminated.

        Args:
            values: of the same rows, from `values`.
        """
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write the network into a folder."""
        raise NotImplementedError

    def _unstacked(self, values: Float[Tensor, "B T O"]) -> Float[Tensor, "B T *O"]:
        """The output of a value head, without the last axis if there is a single value."""
        return values.squeeze(-1) if self.outputs is None else values


class TextCritic(ValueNetwork):
    """A critic of responses: the value after a token is the value before the next one."""

    def next_values(self, part: Rollout, values: Float[Tensor, "B T *O"]) -> Float[Tensor, "B T *O"]:
        """The values shifted by one token; 0 after the last token, also of a response that was cut."""
        if values.ndim == part.action_mask.ndim:
            return following_values(values, part.action_mask)
        return torch.stack([following_values(value, part.action_mask) for value in values.unbind(-1)], dim=-1)
