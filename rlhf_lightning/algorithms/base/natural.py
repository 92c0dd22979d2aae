"""`NaturalGradient`: what NPG and TRPO share, all but the step itself."""

from __future__ import annotations

import math

from torch import nn

from rlhf_lightning.algorithms.base.on_policy import OnPolicy, Prepared
from rlhf_lightning.algorithms.parts.critic import Critic, CriticOptions
from rlhf_lightning.algorithms.parts.fisher import FisherOptions, PolicyGeometry, full_precision
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import AdvantageBatch


class NaturalGradient(OnPolicy[AdvantageBatch]):
    """One step of the policy for each rollout, in the geometry of the Fisher matrix; AdamW fits the critic afterwards.

    Args:
        critic: the value network.
        max_kl: δ, in nats per action, 0.01 to 0.05.
        fisher: damping, conjugate gradient, and how much of the rollout the Fisher matrix sees.
        critic_epochs: passes of the critic over each rollout.
        minibatch_size: responses per step of the critic, or an environment's transitions, across all devices.
        gamma: discount; 1 for language, 0.99 for control.
        lam: λ of GAE, 0.95.
    """

    critic: Critic

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization,
        kl: KLControl,
        *,
        critic: CriticOptions,
        max_kl: float,
        fisher: FisherOptions,
        critic_epochs: int,
        minibatch_size: int,
        gamma: float,
        lam: float,
        temperature: float,
        eval_every: int,
    ) -> None:
        super().__init__(
            task,
            backbone,
            optimization,
            kl,
            temperature=temperature,
            eval_every=eval_every,
            critic=Critic(critic, gamma=gamma, lam=lam, microbatch_size=optimization.microbatch_size),
        )
        limits = {
            "max_kl": (0 < max_kl < math.inf, "above 0 nats per action", max_kl),
            "critic_epochs": (critic_epochs >= 1, "at least 1", critic_epochs),
        }
        check_limits("model.init_args", limits)
        if critic.shared:
            raise UserError(
                "model.init_args.critic.shared would let the critic's steps move the policy, which takes natural steps "
                "only; expected a critic of its own"
            )
        self.max_kl = max_kl
        self.fisher = fisher
        self.critic_epochs = critic_epochs
        self.minibatch_size = minibatch_size

    def networks(self) -> dict[str, nn.Module]:
        """The critic: AdamW never touches the policy."""
        return self.critic.networks()

    def update(self, prepared: Prepared[AdvantageBatch]) -> dict[str, float]:
        """A natural step of the policy, all of it in full precision; then fit the critic."""
        batch, row = prepared.batch, {}
        if self.policy_learns:
            with full_precision(self.device.type):
                geometry = PolicyGeometry(
                    self.policy,
                    batch,
                    self.fisher,
                    microbatch_size=self.optimization.microbatch_size,
                    key=self.current_epoch,
                )
                row = self.accumulate(self.as_one_minibatch(batch))
                row |= self.natural_step(batch, geometry)
        return row | self.fit_critic(batch, epochs=self.critic_epochs, minibatch_size=self.minibatch_size)

    def natural_step(self, batch: AdvantageBatch, geometry: PolicyGeometry) -> dict[str, float]:
        """Move the policy, given the gradient of the loss on the batch; returns metrics.

        Args:
            geometry: the Fisher matrix, the KL and the parameters at the start.
        """
        raise NotImplementedError
