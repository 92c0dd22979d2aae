"""Observations and actions of an environment, as far as the networks need to know them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spaces:
    """The observation space and the action space of an environment.

    Args:
        environment: the environment's id.
        observation_size: length of an observation.
        choices: number of discrete actions, or of choices for each entry of a vector of whole numbers; None if actions
            are vectors of real numbers.
        first_choice: the environment's number of the first discrete action, or of the first one of each entry.
        low: lower bounds of the entries of a vector of real numbers; infinite if there is no bound.
        high: upper bounds, likewise.
        dtype: numpy's name of the type that the environment takes the entries of a vector in.
    """

    environment: str
    observation_size: int
    choices: int | tuple[int, ...] | None = None
    first_choice: int | tuple[int, ...] = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    dtype: str = "float32"

    @property
    def continuous(self) -> bool:
        """Whether actions are vectors of real numbers."""
        return self.choices is None

    @property
    def actions(self) -> str:
        """What an action is, in words."""
        if self.choices is None:
            return f"vectors of length {len(self.low)}"
        if isinstance(self.choices, int):
            return f"{self.choices} choices"
        return f"vectors of {' × '.join(map(str, self.choices))} choices"

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """Convert a policy's actions to those of the environment: vectors of real numbers are clipped to the bounds.

        The policy's density remains that of the vector before clipping: clipping is part of the environment.
        """
        if self.continuous:
            return np.clip(actions.astype(np.float64), self.low, self.high).astype(self.dtype)
        moved = actions + np.asarray(self.first_choice)
        return moved if isinstance(self.choices, int) else moved.astype(self.dtype)
