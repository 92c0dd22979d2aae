"""`PlainSteps`: rewards and ends of episodes as plain numbers and truth values, however an environment gives them."""

from __future__ import annotations

from textwrap import shorten
from typing import Any

import numpy as np
from gymnasium import Env, Wrapper
from typing_extensions import override

from rlhf_lightning.errors import UserError


class PlainSteps(Wrapper[Any, Any, Any, Any]):
    """An environment whose rewards and flags may be arrays of one entry, as those for several agents give them.

    Args:
        environment: its id, for messages.
    """

    def __init__(self, env: Env[Any, Any], environment: str) -> None:
        super().__init__(env)
        self.environment = environment

    @override
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if type(reward) is float and type(terminated) is bool and type(truncated) is bool:
            return observation, reward, terminated, truncated, info
        number = self._single("reward", reward, "number")
        ended, cut = self._flag("terminated", terminated), self._flag("truncated", truncated)
        return observation, number, ended, cut, info

    def _flag(self, name: str, value: Any) -> bool:
        number = self._single(f"flag {name}", value, "truth value")
        if number not in (0, 1):
            raise UserError(f"{self.environment} gave the flag {name} {in_line(value)}; expected one truth value")
        return bool(number)

    def _single(self, name: str, value: Any, expected: str) -> float:
        try:
            (single,) = np.asarray(value, dtype=np.float64).flat
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.environment} gave the {name} {in_line(value)}; expected one {expected}") from error
        return float(single)


def in_line(value: Any) -> str:
    """How a value prints, in one line of at most 200 characters."""
    return shorten(str(value), 200, placeholder=" …")
