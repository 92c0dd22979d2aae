"""Natural policy gradient.

Kakade 2001, "A Natural Policy Gradient": step along F⁻¹ g, F the Fisher matrix of the policy and g the gradient of
E[Â log π]; with a fixed step size, or scaled so that the quadratic model of the KL is δ (Peters and Schaal 2008,
"Natural Actor-Critic"; Schulman et al. 2015, § 6). Nothing checks what the step really did: that is TRPO.

Deviations from the paper: F is damped and known by its products with vectors, for which conjugate gradient solves;
advantages by GAE, with a critic that is fitted by AdamW after each step; F is a mean over actions, g one over
trajectories of sums over actions, like those of every optimizer here. All of the step is computed in full precision,
also where training is in mixed precision.
"""

from __future__ import annotations

import math

from rlhf_lightning.algorithms.base.natural import NaturalGradient
from rlhf_lightning.algorithms.base.on_policy import Prepared, with_advantages
from rlhf_lightning.algorithms.parts.claims import UNBIASED, Variant
from rlhf_lightning.algorithms.parts.critic import Critic, CriticOptions
from rlhf_lightning.algorithms.parts.fisher import FisherOptions, PolicyGeometry
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.parts.metrics import CG_RESIDUAL, kl_of_step
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.ops.losses import policy_gradient_loss
from rlhf_lightning.ops.masking import selected
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.minibatches import Loss, Minibatch
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import AdvantageBatch, ScoredRollout


class NPG(NaturalGradient):
    """The natural gradient with a critic and GAE: one step per rollout.

    Args:
        task: what is to be done.
        backbone: builds policy and critic.
        optimization: of the critic.
        critic: the value network.
        kl: penalty on the KL to the reference, β 0.01 to 0.1.
        max_kl: δ that a step is scaled to by the quadratic model, in nats per action, 0.01 to 0.05.
        step_size: fixed length of the step instead, in units of F⁻¹ g; None scales to ``max_kl``.
        fisher: damping, conjugate gradient, and how much of the rollout the Fisher matrix sees.
        critic_epochs: passes of the critic over each rollout.
        minibatch_size: responses per step of the critic, or an environment's transitions, across all devices.
        gamma: discount; 1 for language, 0.99 for control.
        lam: λ of GAE, 0.95.
        temperature: of the policy, 0.7 to 1.
        eval_every: iterations between evaluations.
    """

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        critic: CriticOptions = CriticOptions(),
        kl: KLControl = KLControl(),
        max_kl: float = 0.01,
        step_size: float | None = None,
        fisher: FisherOptions = FisherOptions(),
        critic_epochs: int = 4,
        minibatch_size: int = 16,
        gamma: float = 1.0,
        lam: float = 0.95,
        temperature: float = 1.0,
        eval_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, kl, temperature=temperature, eval_every=eval_every)
        self.critic = Critic(critic, gamma=gamma, lam=lam, microbatch_size=optimization.microbatch_size)
        self.max_kl = max_kl
        self.fisher = fisher
        self.critic_epochs = critic_epochs
        self.minibatch_size = minibatch_size
        self.step_size = step_size
        fits = step_size is None or 0 < step_size < math.inf
        self.check_arguments(step_size=(fits, "above 0 (null for max_kl)", step_size))

    def prepare(self, scored: ScoredRollout) -> Prepared[AdvantageBatch]:
        """Advantages by GAE."""
        shaped = self.reference.shape(scored, self.policy)
        estimate = self.critic.estimate(self.policy, scored, shaped.rewards)
        return with_advantages(scored, shaped, estimate.advantages, estimate)

    def natural_step(self, batch: AdvantageBatch, geometry: PolicyGeometry) -> dict[str, float]:
        """F⁻¹ g, scaled to the KL or by the fixed step size."""
        natural = geometry.natural_direction(self.grad_scaler, max_kl=self.max_kl if self.step_size is None else None)
        scale = natural.scale if self.step_size is None else self.step_size
        self.check_finite("the natural step", scale * natural.direction.norm().item())
        geometry.move_to(geometry.start + scale * natural.direction)
        return {
            **natural.metrics(),
            "trust_region/kl": geometry.kl(),
            "trust_region/step_size": scale,
            "trust_region/improvement_expected": scale * (natural.gradient @ natural.direction).item(),
        }

    def loss(self, part: AdvantageBatch, minibatch: Minibatch[AdvantageBatch]) -> Loss:
        """−Â log π, and the KL where it is part of the loss."""
        mask = part.action_mask
        outputs = self.policy_outputs(part)
        losses = policy_gradient_loss(selected(outputs.logprobs, mask), selected(part.advantages, mask)).sum()
        gap = selected(outputs.logprobs - part.old_logprobs, mask).abs().max()
        sums = {"policy/loss": losses, "objective/entropy": selected(outputs.entropy, mask).sum()}
        value = (losses + self.reference.losses(part, outputs).sum()) / minibatch.sequences
        return Loss(value, sums, {"rollout/logprob_gap": gap})

    def metrics(self) -> tuple[Metric, ...]:
        """Also those of the step."""
        limit = self.max_kl if self.step_size is None else None
        unit = "factor of the natural gradient"
        step_size = Metric("Step size", unit, "trust_region/step_size", floor=0, own=True)
        return (*super().metrics(), kl_of_step(limit), step_size, CG_RESIDUAL)

    variants = (Variant("NPG, before F⁻¹", UNBIASED),)
