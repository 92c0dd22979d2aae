"""What stands between an environment and the networks that act in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spaces:
    """What an environment shows, and what it takes.

    Args:
        environment: its id.
        observation_size: length of an observation.
        choices: number of discrete actions; None where actions are vectors.
        first_choice: the number that the environment gives to the first of them.
        low: lower bounds of the entries of a vector; infinite where there are none.
        high: upper bounds.
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

    def taken(self, actions: np.ndarray) -> np.ndarray:
        """A policy's actions as the environment takes them: vectors are clipped to the bounds.

        The policy's own density stays that of the vector before clipping: to it the clipping is part of the
        environment.
        """
        if self.continuous:
            bounds = (np.asarray(bound, dtype=np.float32) for bound in (self.low, self.high))
            return np.clip(actions.astype(np.float32), *bounds)
        return actions + self.first_choice
