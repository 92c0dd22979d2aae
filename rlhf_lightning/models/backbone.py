"""What builds the networks of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from rlhf_lightning.models.critic import ValueNetwork
from rlhf_lightning.models.policy import Policy


class Backbone(ABC):
    """Builds the networks of a run: policy and critic.

    ``interface`` gives what they read and write: a task's tokenizer, or an environment's spaces.
    """

    @abstractmethod
    def policy(self, interface: Callable[[], Any], *, temperature: float) -> Policy:
        """A policy at its starting point."""

    @abstractmethod
    def critic(self, policy: Any, *, init: str | None, shared: bool, outputs: int | None) -> ValueNetwork:
        """A critic for the policy, started from a reward model where one is given, or on the policy's own trunk.

        Args:
            outputs: number of objectives that get a value each; None for one value in all.
        """
