"""`Backbone`: builds the networks of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from rlhf_lightning.models.critic import ValueNetwork
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.records.constructed import Constructed


class Backbone(Constructed, ABC):
    """Builds the policy and the critic of a run."""

    @abstractmethod
    def policy(self, interface: Callable[[], object], *, temperature: float = 1.0) -> Policy:
        """A policy at its starting point.

        Args:
            interface: returns what the network reads and writes: the task's tokenizer, or an environment's spaces.
        """

    @abstractmethod
    def critic(
        self, policy: Policy, *, init: str | None = None, shared: bool = False, outputs: int | None = None
    ) -> ValueNetwork:
        """A critic for a policy that this backbone has built.

        Args:
            init: folder or hub name of a reward model to start from; None for the backbone's own starting point.
            shared: whether the critic is a value head on the policy's own trunk.
            outputs: number of objectives that get a value each; None for a single value.
        """
