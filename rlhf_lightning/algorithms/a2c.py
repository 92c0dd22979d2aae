"""Advantage actor-critic.

Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning", algorithm S3, with its actors in step: all of
them act, then one gradient step is taken on everything, with Âₜ = rₜ + γ V(sₜ₊₁) − V(sₜ) and the critic's regression on
rₜ + γ V(sₜ₊₁).

Deviations from the paper: there each return runs to the end of the rollout, here that is ``lam`` 1, one-step
temporal differences (``lam`` 0) are the default, and λ between them mixes all lengths (Schulman et al. 2016, "High-
Dimensional Continuous Control Using Generalized Advantage Estimation", eq. 16). Policy and critic are separate networks
by default; AdamW instead of RMSProp; the KL to the reference is part of the reward, token by token, or of the loss.
"""

from __future__ import annotations

import math

from rlhf_lightning.algorithms.base.on_policy import OnPolicy, Prepared, with_advantages
from rlhf_lightning.algorithms.parts.claims import BIASED, UNBIASED, Variant
from rlhf_lightning.algorithms.parts.critic import Critic, CriticOptions
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.ops.losses import policy_gradient_loss
from rlhf_lightning.ops.masking import selected, whiten
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.minibatches import Loss, Minibatch
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import AdvantageBatch, ScoredRollout


class A2C(OnPolicy[AdvantageBatch]):
    """The policy gradient with a critic that bootstraps.

    Args:
        task: what is to be done.
        backbone: builds policy and critic.
        optimization: learning rate 1e-5 for pretrained models, 1e-4 or more for small ones from scratch.
        critic: the value network; a wrong one biases the gradient at ``lam`` below 1.
        kl: penalty on the KL to the reference, β 0.01 to 0.1.
        gamma: discount; 1 for language, 0.99 for control.
        lam: λ; 0 is one-step temporal differences, 1 the return up to the end of the rollout.
        whiten_advantages: shift and scale them to mean 0 and variance 1 over the rollout.
        entropy_coef: weight of the entropy bonus; 0.01 in the paper.
        temperature: of the policy, 0.7 to 1.
        eval_every: iterations between evaluations.
    """

    critic: Critic

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        critic: CriticOptions = CriticOptions(),
        kl: KLControl = KLControl(),
        gamma: float = 1.0,
        lam: float = 0.0,
        whiten_advantages: bool = False,
        entropy_coef: float = 0.0,
        temperature: float = 1.0,
        eval_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, kl, temperature=temperature, eval_every=eval_every)
        self.critic = Critic(critic, gamma=gamma, lam=lam, microbatch_size=optimization.microbatch_size)
        if not 0 <= entropy_coef < math.inf:
            raise UserError(f"model.init_args.entropy_coef must be 0 or more, got {entropy_coef}")
        self.whiten_advantages = whiten_advantages
        self.entropy_coef = entropy_coef

    def prepare(self, scored: ScoredRollout) -> Prepared[AdvantageBatch]:
        """Advantages and targets from the critic."""
        shaped = self.reference.shape(scored, self.policy)
        estimate = self.critic.estimate(self.policy, scored, shaped.rewards)
        advantages = estimate.advantages
        if self.whiten_advantages:
            advantages = whiten(advantages, scored.rollout.action_mask, eps=1e-8)
        return with_advantages(scored, shaped, advantages, estimate)

    def update(self, prepared: Prepared[AdvantageBatch]) -> dict[str, float]:
        """One gradient step on the whole batch."""
        return self.take_one_step(prepared.batch)

    def loss(self, part: AdvantageBatch, minibatch: Minibatch[AdvantageBatch]) -> Loss:
        """−Σₜ Âₜ log π(aₜ) a trajectory, entropy bonus, the KL where it is part of the loss, and value regression.

        Only the actions that count are looked at, so that nothing in the padding can matter.
        """
        mask = part.action_mask
        outputs = self.policy_outputs(part)
        logprobs, entropy = selected(outputs.logprobs, mask), selected(outputs.entropy, mask)
        policy_loss = policy_gradient_loss(logprobs, selected(part.advantages, mask))
        critic = self.critic.loss(self.policy, part, minibatch, outputs)

        kl = self.reference.losses(part, outputs)
        value = (policy_loss.sum() + kl.sum()) / minibatch.sequences
        if self.entropy_coef:
            value = value - self.entropy_coef * entropy.sum() / minibatch.sequences
        sums = {"policy/loss": policy_loss.sum(), "objective/entropy": entropy.sum()}
        largest = {"rollout/logprob_gap": (logprobs - selected(part.old_logprobs, mask)).abs().max()}
        return Loss(critic.value + (value if self.policy_learns else 0.0), sums | critic.sums, largest)

    variants = (
        Variant("A2C, λ = 0, exact values", UNBIASED, {"lam": 0.0}),
        Variant("A2C, λ = 0, wrong values", BIASED, {"lam": 0.0}, wrong_critic=True),
        Variant("A2C, λ = 1, wrong values", UNBIASED, {"lam": 1.0}, wrong_critic=True),
    )
