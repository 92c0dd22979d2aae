"""A case to compute: rewards, a policy away from its reference, and critics that know its values or do not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.algorithms.base.on_policy import OnPolicy
from rlhf_lightning.algorithms.parts.critic import Critic
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.tabular import OPEN, PREFIXES, TOKENS, TabularBackbone, TabularCritic, TabularPolicy
from rlhf_lightning.tasks.bandit import Bandit
from rlhf_lightning.tasks.bandit.exact import Objective

Placed = TypeVar("Placed", bound=OnPolicy[Any] | FeedbackAlgorithm[Any])


def tabular(policy: Policy | None) -> TabularPolicy:
    """The same policy, typed as the table that it is."""
    assert isinstance(policy, TabularPolicy)
    return policy


@dataclass(frozen=True)
class Instance:
    """The enumerable task in the middle of a run, in float64.

    The reference's logits are drawn from N(0, 1), and to those of the policy as much is added once more.

    Args:
        seed: of the rewards, the two policies and the errors of wrong critics.
        kl_coef: β, in reward units per nat.
        critic_error: standard deviation, over prefixes, of how far a wrong critic is off.
    """

    seed: int = 0
    kl_coef: float = 0.3
    critic_error: float = 0.5

    @cached_property
    def task(self) -> Bandit:
        """The rewards."""
        return Bandit(seed=self.seed)

    @property
    def backbone(self) -> TabularBackbone:
        """What every algorithm is built with, beside the task."""
        return TabularBackbone()

    @cached_property
    def scores(self) -> Float[Tensor, " 15"]:
        """The task's score of each response."""
        return self.task.scores().double()

    @cached_property
    def reference(self) -> TabularPolicy:
        """π_ref."""
        return self._policy(self._noise[0])

    @cached_property
    def policy(self) -> TabularPolicy:
        """π."""
        return self._policy(self._noise[0] + self._noise[1])

    @cached_property
    def objective(self) -> Objective:
        """J: the score less the price of the KL."""
        return Objective(self.scores, self.reference, self.kl_coef)

    def place(self, module: Placed, *, wrong_critic: bool = False) -> Placed:
        """Give an algorithm this policy and this reference, and a critic of them where it has one.

        Args:
            module: built with `task` and `backbone`.
            wrong_critic: whether its critic errs; otherwise it knows the values.
        """
        module.configure_model()
        module.double()
        with torch.no_grad():
            for policy, start in ((module.policy, self.policy), (module.reference.policy, self.reference)):
                tabular(policy).logits.copy_(start.logits)
            critic = getattr(module, "critic", None)
            if isinstance(critic, Critic) and isinstance(critic.network, TabularCritic):
                values = self.objective.values(self.policy, gamma=critic.gamma)
                critic.network.table.copy_(values + self.value_errors() if wrong_critic else values)
        return module

    def value_errors(self) -> Float[Tensor, " 15"]:
        """How far a wrong critic is off at each prefix."""
        return self.critic_error * self._noise[2].view(-1)[:PREFIXES]

    @cached_property
    def _noise(self) -> Float[Tensor, "3 7 3"]:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(3, OPEN, len(TOKENS), generator=generator, dtype=torch.float64)

    def _policy(self, logits: Float[Tensor, "7 3"]) -> TabularPolicy:
        return TabularPolicy(self.task.tokenizer(), logits)
