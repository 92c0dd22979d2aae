"""Critics: the expected return before and after each action."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rlhf_lightning.ops.advantages import following_values
from rlhf_lightning.types import Rollout


class ValueNetwork(nn.Module):
    """Expected return before each action of a trajectory: one number, or one for each of several objectives O."""

    def values(
        self,
        context: Any,
        actions: Tensor,
        action_mask: Bool[Tensor, "B T"],
        trunk: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B T *O"]:
        """Value before each action; ``trunk`` holds the policy's hidden states, for critics that share its trunk."""
        raise NotImplementedError

    def next_values(self, part: Rollout, values: Float[Tensor, "B T *O"]) -> Float[Tensor, "B T *O"]:
        """Value after each action, 0 where nothing follows."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write the network."""
        raise NotImplementedError


class TextCritic(ValueNetwork):
    """A critic of responses: the value after a token is the value before the next one."""

    def next_values(self, part: Rollout, values: Float[Tensor, "B T *O"]) -> Float[Tensor, "B T *O"]:
        """The values shifted by one token; a response that was cut has ended too."""
        if values.ndim == part.action_mask.ndim:
            return following_values(values, part.action_mask)
        return torch.stack([following_values(column, part.action_mask) for column in values.unbind(-1)], dim=-1)
