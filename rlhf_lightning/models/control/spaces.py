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
        choices: number of discrete actions; None if actions are vectors.
        first_choice: the environment's number of the first discrete action.
        low: lower bounds of the entries of an action vector; infinite if there is no bound.
        high: upper bounds, likewise.
    """

    environment: str
    observation_size: int
    choices: int | None = None
    first_choice: int = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def continuous(self) -> bool:
        """Whether actions are vectors."""
        return self.choices is None

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """Convert a policy's actions to those of the environment: vectors are clipped to the bounds.

        The policy's density remains that of the vector before clipping: clipping is part of the environment.
        """
        if self.continuous:
            bounds = (np.asarray(bound, dtype=np.float32) for bound in (self.low, self.high))
            return np.clip(actions.astype(np.float32), *bounds)
        return actions + self.first_choice
