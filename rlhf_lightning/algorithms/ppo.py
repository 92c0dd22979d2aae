"""Proximal policy optimization.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms": with a clipped surrogate (eq. 7, algorithm 1) or a
penalty on the KL to the old policy (eq. 8, § 4). For language models as in Ziegler et al. 2019 and Stiennon et al.
2020: the KL to the reference is part of the reward, token by token; it may also stand in the loss.

Deviations from the paper: policy and critic are separate networks by default, so their losses need no common weight
(``critic.coef`` matters only on a shared trunk); advantages are whitened over the whole rollout batch; the penalty's KL
is estimated from the actions that were taken (k3, whose gradient is that of the exact one in expectation) instead of
summed over all; the update can end early, when the KL to the old policy exceeds ``stop_kl``. Losses are summed over a
trajectory's actions and averaged over trajectories, like those of every optimizer here.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from rlhf_lightning.algorithms.base.on_policy import OnPolicy, Prepared, with_advantages
from rlhf_lightning.algorithms.parts.claims import BIASED, UNBIASED, Variant
from rlhf_lightning.algorithms.parts.critic import Critic, CriticOptions
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.parts.metrics import CLIP_FRACTION, KL_OLD, STEPS
from rlhf_lightning.algorithms.parts.surrogates import (
    Clip,
    MeanRatio,
    Penalty,
    Ratio,
    SequenceRatio,
    Surrogate,
    TokenRatio,
)
from rlhf_lightning.algorithms.parts.updates import check_stop_kl
from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.ops.kl import k3
from rlhf_lightning.ops.masking import selected, whiten
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.minibatches import Loss, Minibatch
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import AdvantageBatch, ScoredRollout


class PPO(OnPolicy[AdvantageBatch]):
    """PPO with a critic, GAE and several epochs of shuffled minibatches per rollout.

    Args:
        task: what is to be done.
        backbone: builds policy and critic.
        optimization: learning rate 1e-5 for pretrained models, 1e-4 or more for small ones from scratch.
        critic: the value network.
        kl: penalty on the KL to the reference, β 0.01 to 0.1.
        ratio: of tokens, or of whole responses; those need ``gamma`` and ``lam`` 1.
        surrogate: clipped or penalized.
        inner_epochs: passes over each rollout, 4 to 10.
        minibatch_size: responses per step, or an environment's transitions, across all devices.
        gamma: discount; 1 for language, 0.99 for control.
        lam: λ of GAE, 0.95.
        whiten_advantages: shift and scale them to mean 0 and variance 1 over the rollout.
        entropy_coef: weight of the entropy bonus.
        stop_kl: an update ends when KL(π_old‖π) exceeds this, in nats per action; None never.
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
        ratio: Ratio = TokenRatio(),
        surrogate: Surrogate = Clip(),
        inner_epochs: int = 4,
        minibatch_size: int = 16,
        gamma: float = 1.0,
        lam: float = 0.95,
        whiten_advantages: bool = True,
        entropy_coef: float = 0.0,
        stop_kl: float | None = None,
        temperature: float = 1.0,
        eval_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, kl, temperature=temperature, eval_every=eval_every)
        self.critic = Critic(critic, gamma=gamma, lam=lam, microbatch_size=optimization.microbatch_size)
        self.ratio = ratio
        self.surrogate = copy.deepcopy(surrogate)
        self.inner_epochs = inner_epochs
        self.minibatch_size = minibatch_size
        self.whiten_advantages = whiten_advantages
        self.entropy_coef = entropy_coef
        self.stop_kl = stop_kl
        limits = {
            "inner_epochs": (inner_epochs >= 1, "at least 1", inner_epochs),
            "minibatch_size": (minibatch_size >= 1, "at least 1", minibatch_size),
            "entropy_coef": (0 <= entropy_coef < math.inf, "0 or more", entropy_coef),
        }
        check_limits("model.init_args", limits)
        check_stop_kl(stop_kl)
        if ratio.whole_responses and (gamma, lam) != (1, 1):
            raise UserError(
                f"model.init_args.ratio {type(ratio).__name__} takes a response for one action, worth its whole "
                f"return: expected gamma 1 and lam 1, got {gamma} and {lam}"
            )

    def prepare(self, scored: ScoredRollout) -> Prepared[AdvantageBatch]:
        """Advantages by GAE, whitened over the positions that have a ratio."""
        shaped = self.reference.shape(scored, self.policy)
        estimate = self.critic.estimate(self.policy, scored, shaped.rewards)
        advantages = estimate.advantages
        if self.whiten_advantages:
            advantages = whiten(advantages, self.ratio.positions(scored.rollout.action_mask), eps=1e-8)
        return with_advantages(scored, shaped, advantages, estimate)

    def update(self, prepared: Prepared[AdvantageBatch]) -> dict[str, float]:
        """Several epochs of shuffled minibatches, ended early when the policy has moved far enough."""
        row = self.take_steps(
            prepared.batch, epochs=self.inner_epochs, minibatch_size=self.minibatch_size, stop_kl=self.stop_kl
        )
        if self.surrogate.adapts and self.policy_learns:
            self.surrogate.adapt(self.kl_to_old(prepared.batch))
        return row | ({"policy/kl_coef": self.surrogate.kl_coef} if self.surrogate.kl_coef else {})

    def loss(self, part: AdvantageBatch, minibatch: Minibatch[AdvantageBatch]) -> Loss:
        """Surrogate, entropy bonus, the KL to the reference where it is part of the loss, and value regression.

        Only the actions that count are looked at, so that nothing in the padding can matter.
        """
        mask = part.action_mask
        outputs = self.policy_outputs(part)
        log_ratio = self.ratio.log_ratio(outputs.logprobs, part.old_logprobs, mask)
        advantages = part.advantages[self.ratio.positions(mask)]
        surrogate = self.surrogate.loss(log_ratio, advantages)
        entropy, kl_old = selected(outputs.entropy, mask), selected(k3(part.old_logprobs, outputs.logprobs), mask)
        per_ratio = minibatch.tokens / (minibatch.sequences if self.ratio.whole_responses else minibatch.tokens)

        policy_loss = surrogate.sum() + self.reference.losses(part, outputs).sum()
        if self.surrogate.kl_coef:
            policy_loss = policy_loss + self.surrogate.kl_coef * kl_old.sum()
        if self.entropy_coef:
            policy_loss = policy_loss - self.entropy_coef * entropy.sum()
        critic = self.critic.loss(self.policy, part, minibatch, outputs)
        value = critic.value + (policy_loss / minibatch.sequences if self.policy_learns else 0.0)
        sums = {
            "policy/loss": surrogate.sum() * per_ratio,  # sums are reported per action, these two per ratio
            "policy/kl_old": kl_old.sum(),
            "policy/clip_fraction": self.surrogate.is_clipped(log_ratio, advantages).sum() * per_ratio,
            "objective/entropy": entropy.sum(),
        }
        gap = selected(outputs.logprobs - part.old_logprobs, mask).abs().max()
        return Loss(value, sums | critic.sums, {"policy/ratio_max": log_ratio.exp().max(), "rollout/logprob_gap": gap})

    def metrics(self) -> tuple[Metric, ...]:
        """Also those of the update."""
        penalty = Metric("KL penalty of the update", "β of the surrogate", "policy/kl_coef", role="kl", floor=0)
        return (*super().metrics(), KL_OLD, *((penalty,) if self.surrogate.kl_coef else ()), STEPS, CLIP_FRACTION)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the coefficient of the penalty."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["surrogate_kl_coef"] = self.surrogate.kl_coef

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it where it adapts; a fixed one is a setting."""
        super().on_load_checkpoint(checkpoint)
        if self.surrogate.adapts:
            self.surrogate.kl_coef = checkpoint["surrogate_kl_coef"]

    variants = (
        Variant("PPO, λ = 0.95, exact values", UNBIASED, {"whiten_advantages": False}),
        Variant("PPO, λ = 0.95, wrong values", BIASED, {"whiten_advantages": False}, wrong_critic=True),
        Variant("PPO, λ = 0.95, exact values, whitened", BIASED),
        Variant("PPO, penalty", UNBIASED, {"surrogate": Penalty(), "whiten_advantages": False}),
        Variant(
            "PPO, ratio of responses", UNBIASED, {"ratio": SequenceRatio(), "lam": 1.0, "whiten_advantages": False}
        ),
        Variant("PPO, geometric mean ratio", BIASED, {"ratio": MeanRatio(), "lam": 1.0, "whiten_advantages": False}),
    )
