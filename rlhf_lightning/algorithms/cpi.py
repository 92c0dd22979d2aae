"""Conservative policy iteration, in a form that a neural network can follow.

Kakade and Langford 2002, "Approximately Optimal Approximate Reinforcement Learning": the new policy is the mixture
(1 − α) π_old + α π′ (eq. 4.1), π′ a policy that is greedy with respect to π_old's advantages, and a small α makes every
step an improvement (theorem 4.1).

Here π′ ∝ π_old e^{Â/η}, the greedy policy softened by a temperature η (η → 0 is greedy), and the network is fitted to
the mixture by maximum likelihood: minimizing −E_{π_old}[((1 − α) + α w) log π] with w = e^{Â/η} scaled to mean 1 is
minimizing KL(mixture‖π), whose minimum is the mixture itself.

Deviations from the paper: π′ is soft and known through its weights alone, which are normalized over the rollout and
not in each state; the fit is some epochs of AdamW, so the mixture is approached, not reached; α is fixed instead of
computed from the bound of corollary 4.2, which is far too small to be of use; advantages by GAE with a fitted critic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.algorithms.base.on_policy import OnPolicy, Prepared
from rlhf_lightning.algorithms.parts.claims import OTHER, Variant
from rlhf_lightning.algorithms.parts.critic import Critic, CriticOptions, check_range
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.parts.metrics import KL_OLD, STEPS
from rlhf_lightning.algorithms.parts.updates import check_stop_kl
from rlhf_lightning.errors import UserError, check_counts
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.ops.kl import k3
from rlhf_lightning.ops.losses import conservative_weights
from rlhf_lightning.ops.masking import selected, whiten
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.minibatches import Loss, Minibatch
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import ScoredRollout, TrainBatch


@dataclass(kw_only=True)
class WeightedBatch(TrainBatch):
    """A batch of which each action has a weight in the mixture.

    Args:
        weights: (1 − α) + α w.
    """

    weights: Float[Tensor, "B T"]


class CPI(OnPolicy[WeightedBatch]):
    """Fits the policy to a mixture of itself and a better one.

    Args:
        task: what is to be done.
        backbone: builds policy and critic.
        optimization: learning rate 1e-5 for pretrained models, 1e-4 or more for small ones from scratch.
        critic: the value network.
        kl: penalty on the KL to the reference, β 0.01 to 0.1 in the reward. In the loss it is weighed against the
            likelihood of actions, whose weights have a mean of 1, not against rewards.
        mixture: α, the share of the better policy, 0.1 to 1.
        eta: η, in standard deviations of the advantages, which are whitened: smaller is greedier, 0.3 to 1.
        inner_epochs: passes over each rollout, 1 to 10.
        minibatch_size: responses per step, or an environment's transitions, across all devices.
        stop_kl: an update ends when KL(π_old‖π) exceeds this, in nats per action; None never.
        gamma: discount; 1 for language, 0.99 for control.
        lam: λ of GAE, 0.95.
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
        mixture: float = 0.5,
        eta: float = 1.0,
        inner_epochs: int = 4,
        minibatch_size: int = 16,
        stop_kl: float | None = None,
        gamma: float = 1.0,
        lam: float = 0.95,
        temperature: float = 1.0,
        eval_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, kl, temperature=temperature, eval_every=eval_every)
        self.critic = Critic(critic, gamma=gamma, lam=lam, microbatch_size=optimization.microbatch_size)
        check_range("mixture", mixture, 0, 1)
        if not 0 < eta < math.inf:
            raise UserError(f"model.init_args.eta must be above 0, got {eta}")
        check_counts("model.init_args", inner_epochs=inner_epochs)
        check_stop_kl(stop_kl)
        self.mixture, self.eta = mixture, eta
        self.inner_epochs = inner_epochs
        self.minibatch_size = minibatch_size
        self.stop_kl = stop_kl

    def prepare(self, scored: ScoredRollout) -> Prepared[WeightedBatch]:
        """The weight of each action in the mixture, from whitened advantages by GAE."""
        mask = scored.rollout.action_mask
        shaped = self.reference.shape(scored, self.policy)
        estimate = self.critic.estimate(self.policy, scored, shaped.rewards)
        whitened = whiten(estimate.advantages, mask, eps=1e-8)
        weights = conservative_weights(whitened, mask, mixture=self.mixture, temperature=self.eta)
        batch = WeightedBatch.of(
            scored.rollout,
            weights=weights,
            old_values=estimate.old_values,
            returns=estimate.returns,
            ref_logprobs=shaped.ref_logprobs,
        )
        metrics = {**estimate.metrics, **shaped.metrics, "policy/weight_max": selected(weights, mask).max().item()}
        return Prepared(batch.units(), scored.rollout, shaped.kl, metrics)

    def update(self, prepared: Prepared[WeightedBatch]) -> dict[str, float]:
        """Several epochs of shuffled minibatches towards the mixture, ended early when the policy has moved enough."""
        return self.take_steps(
            prepared.batch, epochs=self.inner_epochs, minibatch_size=self.minibatch_size, stop_kl=self.stop_kl
        )

    def loss(self, part: WeightedBatch, minibatch: Minibatch[WeightedBatch]) -> Loss:
        """Weighted negative log-likelihood, the KL where it is part of the loss, and value regression."""
        mask = part.action_mask
        outputs = self.policy_outputs(part)
        logprobs, old_logprobs = selected(outputs.logprobs, mask), selected(part.old_logprobs, mask)
        losses = (-selected(part.weights, mask) * logprobs).sum()
        critic = self.critic.loss(self.policy, part, minibatch, outputs)
        policy_loss = (losses + self.reference.losses(part, outputs).sum()) / minibatch.sequences
        value = critic.value + (policy_loss if self.policy_learns else 0.0)
        sums = {
            "policy/loss": losses,
            "policy/kl_old": k3(old_logprobs, logprobs).sum(),
            "objective/entropy": selected(outputs.entropy, mask).sum(),
        }
        return Loss(value, sums | critic.sums, {"rollout/logprob_gap": (logprobs - old_logprobs).abs().max()})

    def metrics(self) -> tuple[Metric, ...]:
        """Also those of the weights and of the update."""
        weight = Metric("Largest weight", "of an action in the better policy", "policy/weight_max", floor=0)
        return (*super().metrics(), weight, KL_OLD, STEPS)

    variants = (Variant("CPI", OTHER),)
