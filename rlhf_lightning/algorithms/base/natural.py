"""`NaturalGradient`: what NPG and TRPO share, all but the step itself."""

from __future__ import annotations

import math

from torch import nn

from rlhf_lightning.algorithms.base.on_policy import OnPolicy, Prepared
from rlhf_lightning.algorithms.parts.critic import Critic
from rlhf_lightning.algorithms.parts.fisher import FisherOptions, PolicyGeometry, full_precision
from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.types import AdvantageBatch


class NaturalGradient(OnPolicy[AdvantageBatch]):
    """One step of the policy for each rollout, in the geometry of the Fisher matrix; AdamW fits the critic afterwards.

    Its fields are arguments of the algorithms, of the same names.
    """

    critic: Critic
    max_kl: float
    fisher: FisherOptions
    critic_epochs: int
    minibatch_size: int

    def check_arguments(self, **own: tuple[bool, str, object]) -> None:
        """Raise `UserError` for arguments that do not fit.

        Args:
            own: limits of the arguments that only this algorithm has, see `check_limits`.
        """
        shared = {
            "max_kl": (0 < self.max_kl < math.inf, "above 0 nats per action", self.max_kl),
            "critic_epochs": (self.critic_epochs >= 1, "at least 1", self.critic_epochs),
        }
        check_limits("model.init_args", shared | own)
        if self.critic.options.shared:
            raise UserError(
                "model.init_args.critic.shared would let the critic's steps move the policy, which takes natural steps "
                "only; expected a critic of its own"
            )

    def networks(self) -> dict[str, nn.Module]:
        """The critic: AdamW never touches the policy."""
        return self.critic.networks()

    def learners(self) -> dict[str, nn.Module]:
        """The policy, too."""
        return {"policy": self.policy, **self.networks()}

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
