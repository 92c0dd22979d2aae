"""REINFORCE++: PPO's update without a critic, on advantages that are normalized over the whole batch.

Hu et al. 2025, "REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Normalization". The KL to the
reference is subtracted from the reward token by token, so the return from token t on is

    Âₜ = R(x, y) − β Σ_{k≥t} KLₖ,     KLₖ = log π_old(yₖ) − log π_ref(yₖ),

and Â is shifted and scaled to mean 0 and variance 1 over all tokens of the global batch, not within a prompt's group.
It is the advantage in PPO's clipped surrogate. With ``group_baseline``, the paper's variant for several responses to a
prompt, the mean return of the group is subtracted before that.

The batch's own mean and deviation depend on the actions that they normalize, so E[g] is not exactly along ∇J; the
difference shrinks as the batch grows.

Deviations from the paper: losses are summed over a trajectory's actions and averaged over trajectories, like those of
every optimizer here; the variant with a group baseline keeps the KL in the reward unless ``kl.loss`` moves it into the
loss (the paper's k2); an update can end early, when the KL to the old policy exceeds ``stop_kl``. Where the rollout
ends inside an environment's episode, the return is what was seen.
"""

from __future__ import annotations

from rlhf_lightning.algorithms.base.on_policy import OnPolicy, Prepared, with_advantages
from rlhf_lightning.algorithms.parts.claims import BIASED, Variant
from rlhf_lightning.algorithms.parts.critic import check_range
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.algorithms.parts.metrics import CLIP_FRACTION, KL_OLD, STEPS
from rlhf_lightning.algorithms.parts.surrogates import Clip, Surrogate
from rlhf_lightning.algorithms.parts.updates import check_stop_kl
from rlhf_lightning.errors import UserError, check_counts
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.ops.advantages import discounted_returns
from rlhf_lightning.ops.groups import group_advantages
from rlhf_lightning.ops.kl import k3
from rlhf_lightning.ops.masking import selected, sequence_sum, whiten
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.minibatches import Loss, Minibatch
from rlhf_lightning.training.optimization import Optimization
from rlhf_lightning.types import AdvantageBatch, ScoredRollout


class ReinforcePlusPlus(OnPolicy[AdvantageBatch]):
    """Clipped policy gradients of returns that are normalized over the global batch; no critic.

    Args:
        task: what is to be done.
        backbone: builds the policy.
        optimization: learning rate 1e-6 to 1e-5 for pretrained models, 1e-4 to 1e-3 for small ones from scratch.
        kl: penalty on the KL to the reference, β 0.001 to 0.1.
        surrogate: clipped, or ``Surrogate`` without a limit.
        group_baseline: subtract the mean return of the responses to the same prompt before the normalization.
        inner_epochs: passes over each rollout.
        minibatch_size: responses per step, or an environment's transitions, across all devices; None for all of the
            rollout.
        gamma: discount; 1 for language and with ``group_baseline``, 0.99 for control.
        stop_kl: an update ends when KL(π_old‖π) exceeds this, in nats per action; None never.
        temperature: of the policy, 0.7 to 1.
        eval_every: iterations between evaluations.
    """

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        kl: KLControl = KLControl(0.01),
        surrogate: Surrogate = Clip(),
        group_baseline: bool = False,
        inner_epochs: int = 1,
        minibatch_size: int | None = None,
        gamma: float = 1.0,
        stop_kl: float | None = None,
        temperature: float = 1.0,
        eval_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, kl, temperature=temperature, eval_every=eval_every)
        check_counts("model.init_args", inner_epochs=inner_epochs, minibatch_size=minibatch_size)
        check_range("gamma", gamma, 0, 1)
        check_stop_kl(stop_kl)
        if surrogate.kl_coef:
            raise UserError("model.init_args.surrogate Penalty belongs to PPO; expected Surrogate (no limit) or Clip")
        if group_baseline:
            task.require(frozenset({"groups"}), by="ReinforcePlusPlus with group_baseline")
            if gamma != 1:
                raise UserError(f"model.init_args.group_baseline compares whole returns: expected gamma 1, got {gamma}")
        self.surrogate = surrogate
        self.group_baseline = group_baseline
        self.inner_epochs = inner_epochs
        self.minibatch_size = minibatch_size
        self.gamma = gamma
        self.stop_kl = stop_kl

    def setup(self, stage: str) -> None:
        """Check that prompts have several responses where these are compared."""
        super().setup(stage)
        if self.group_baseline:
            self.check_groups()

    def prepare(self, scored: ScoredRollout) -> Prepared[AdvantageBatch]:
        """Returns from each action on, less the group's mean where asked for, normalized over the whole batch."""
        rollout, mask = scored.rollout, scored.rollout.action_mask
        shaped = self.reference.shape(scored, self.policy)
        rewards = shaped.rewards.to(rollout.old_logprobs.dtype)
        returns = discounted_returns(rewards, rollout.continues, gamma=self.gamma)
        if self.group_baseline:
            totals = sequence_sum(rewards, mask)
            centered = group_advantages(totals, group_size=scored.group_size, normalize_std=False, eps=0.0)
            returns = returns - (totals - centered)[:, None]
        return with_advantages(scored, shaped, whiten(returns, mask, eps=1e-8))

    def update(self, prepared: Prepared[AdvantageBatch]) -> dict[str, float]:
        """One step on the whole batch, or several on minibatches, ended early when the policy has moved far enough."""
        return self.take_steps(
            prepared.batch, epochs=self.inner_epochs, minibatch_size=self.minibatch_size, stop_kl=self.stop_kl
        )

    def loss(self, part: AdvantageBatch, minibatch: Minibatch[AdvantageBatch]) -> Loss:
        """The clipped surrogate of each token, and the KL to the reference where it is part of the loss."""
        mask = part.action_mask
        outputs = self.policy_outputs(part)
        log_ratio, advantages = selected(outputs.logprobs - part.old_logprobs, mask), selected(part.advantages, mask)
        surrogate = self.surrogate.loss(log_ratio, advantages)
        value = (surrogate.sum() + self.reference.losses(part, outputs).sum()) / minibatch.sequences
        sums = {
            "policy/loss": surrogate.sum(),
            "policy/kl_old": selected(k3(part.old_logprobs, outputs.logprobs), mask).sum(),
            "policy/clip_fraction": self.surrogate.is_clipped(log_ratio, advantages).sum(),
            "objective/entropy": selected(outputs.entropy, mask).sum(),
        }
        largest = {"policy/ratio_max": log_ratio.exp().max(), "rollout/logprob_gap": log_ratio.abs().max()}
        return Loss(value, sums, largest)

    def metrics(self) -> tuple[Metric, ...]:
        """Also those of the update."""
        return (*super().metrics(), KL_OLD, STEPS, CLIP_FRACTION)

    variants = (Variant("REINFORCE++", BIASED),)
