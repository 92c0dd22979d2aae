"""REINFORCE, with and without a baseline.

Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning", in its
episodic form: ∇J = E[Σₜ ∇log π(aₜ) (R − b)], one gradient step per rollout. By default an action is weighted with the
rewards that it can still change, Rₜ = Σ_{k≥t} γ^{k−t} rₖ: the same expectation at γ = 1 with, as a rule, less variance
(Sutton et al. 2000, "Policy Gradient Methods for Reinforcement Learning with Function Approximation", theorem 1). At
γ < 1 that leaves out the factor γᵗ of the discounted objective's gradient, as is usual.

Deviations from the paper: AdamW on clipped gradients instead of plain ascent; the KL to the reference is part of the
reward, token by token, or of the loss; an entropy bonus where one is asked for. Where the rollout ends inside an
environment's episode, or a time limit cuts one, a value function says what would have followed; without one the return
is what was seen.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from rlhf_lightning.algorithms.base.on_policy import OnPolicy, Prepared, with_advantages
from rlhf_lightning.algorithms.parts.baselines import (
    Baseline,
    BatchMean,
    MovingAverage,
    NoBaseline,
    ScalarBaseline,
    ValueBaseline,
)
from rlhf_lightning.algorithms.parts.claims import BIASED, SHORT_BY_BATCH, UNBIASED, Variant
from rlhf_lightning.algorithms.parts.critic import Critic, check_range
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.ops.advantages import episode_totals
from rlhf_lightning.ops.losses import policy_gradient_loss
from rlhf_lightning.ops.masking import selected, whiten
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.minibatches import Loss, Minibatch
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import AdvantageBatch, ScoredRollout


class REINFORCE(OnPolicy[AdvantageBatch]):
    """The policy gradient from sampled returns.

    Args:
        task: what is to be done.
        backbone: builds the policy, and the critic of a value baseline.
        optimization: learning rate 1e-5 for pretrained models, 1e-4 or more for small ones from scratch.
        baseline: what is subtracted from the returns.
        kl: penalty on the KL to the reference, β 0.01 to 0.1.
        reward_to_go: weight each action with the return from there on; False weights all actions of an episode with
            the whole return, less the baseline at its start: the response as one action.
        gamma: discount; 1 for language, 0.99 for control.
        whiten_advantages: shift and scale them to mean 0 and variance 1 over the rollout.
        entropy_coef: weight of the entropy bonus.
        temperature: of the policy, 0.7 to 1.
        eval_every: iterations between evaluations.
    """

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        baseline: Baseline = MovingAverage(),
        kl: KLControl = KLControl(),
        reward_to_go: bool = True,
        gamma: float = 1.0,
        whiten_advantages: bool = False,
        entropy_coef: float = 0.0,
        temperature: float = 1.0,
        eval_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, kl, temperature=temperature, eval_every=eval_every)
        self.critic = baseline.build_critic(gamma=gamma, microbatch_size=optimization.microbatch_size)
        check_range("gamma", gamma, 0, 1)
        if not 0 <= entropy_coef < math.inf:
            raise UserError(f"model.init_args.entropy_coef must be 0 or more, got {entropy_coef}")
        self.baseline = copy.deepcopy(baseline)
        self.gamma = gamma
        self.reward_to_go = reward_to_go
        self.whiten_advantages = whiten_advantages
        self.entropy_coef = entropy_coef

    def prepare(self, scored: ScoredRollout) -> Prepared[AdvantageBatch]:
        """Returns less the baseline."""
        rollout = scored.rollout
        shaped = self.reference.shape(scored, self.policy)
        if isinstance(self.baseline, ScalarBaseline):
            estimate = self.baseline.estimate(scored, shaped.rewards, gamma=self.gamma)
        else:
            assert isinstance(self.critic, Critic)  # which the baseline has built
            estimate = self.critic.estimate(self.policy, scored, shaped.rewards)
        advantages = estimate.advantages
        if not self.reward_to_go:
            advantages = episode_totals(advantages, rollout.continues)
        if self.whiten_advantages:
            advantages = whiten(advantages, rollout.action_mask, eps=1e-8)
        return with_advantages(scored, shaped, advantages, estimate)

    def update(self, prepared: Prepared[AdvantageBatch]) -> dict[str, float]:
        """One gradient step on the whole batch."""
        return self.take_one_step(prepared.batch)

    def loss(self, part: AdvantageBatch, minibatch: Minibatch[AdvantageBatch]) -> Loss:
        """−Σₜ Âₜ log π(aₜ) a trajectory, entropy bonus, the KL where it is part of the loss, and the value regression.

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

    def metrics(self) -> tuple[Metric, ...]:
        """Also the baseline, where it is one number."""
        return (*super().metrics(), *self.baseline.metrics())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the state of the baseline; a value function is saved as a network."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["baseline"] = self.baseline.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore it."""
        super().on_load_checkpoint(checkpoint)
        self.baseline.load_state_dict(checkpoint["baseline"])

    variants = (
        Variant("REINFORCE, whole return", UNBIASED, {"baseline": NoBaseline(), "reward_to_go": False}),
        Variant("REINFORCE, reward to go", UNBIASED, {"baseline": NoBaseline()}),
        Variant("REINFORCE, batch mean", SHORT_BY_BATCH, {"baseline": BatchMean()}),
        Variant("REINFORCE, moving average (1.0 so far)", UNBIASED, {"baseline": MovingAverage.after(1.0)}),
        Variant("REINFORCE, exact values", UNBIASED, {"baseline": ValueBaseline()}),
        Variant("REINFORCE, wrong values", UNBIASED, {"baseline": ValueBaseline()}, wrong_critic=True),
        Variant("REINFORCE, whitened", BIASED, {"baseline": NoBaseline(), "whiten_advantages": True}),
    )
