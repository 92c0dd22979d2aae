"""Proximal policy optimization with a clipped surrogate.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7 and algorithm 1; for language models as in
Ziegler et al. 2019 and Stiennon et al. 2020: the KL to the reference is part of the reward, token by token.

Deviations from the paper: policy and critic are separate networks by default, so their losses need no common weight
(``value_coef`` matters only on a shared trunk); advantages are whitened over the whole rollout batch; the update ends
early when the KL to the old policy exceeds ``stop_kl``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.algorithm import PolicyAlgorithm
from rlhf_lightning.errors import UserError
from rlhf_lightning.kl_control import KLControl
from rlhf_lightning.minibatches import Minibatch
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.ops.advantages import gae, response_transitions
from rlhf_lightning.ops.kl import k3
from rlhf_lightning.ops.losses import clipped_surrogate_loss, ratio_is_clipped, value_loss
from rlhf_lightning.ops.masking import explained_variance, sequence_sum, token_mean, whiten
from rlhf_lightning.ops.rewards import kl_shaped_rewards
from rlhf_lightning.optimization import Optimization
from rlhf_lightning.synced import on_cpu
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.types import Rollout, ScoredRollout, TrainBatch


@dataclass(frozen=True)
class CriticOptions:
    """The value network.

    Args:
        lr: its learning rate; None for the policy's.
        shared: a head on the policy's trunk instead of a network of its own.
        init: folder of a reward model to start from; None starts from the policy's own trunk.
        clip_range: bound on how far values move in an update, in reward units; None for no bound.
        coef: weight of the value loss on a shared trunk.
        warmup: iterations at the start in which only the critic learns.
    """

    lr: float | None = None
    shared: bool = False
    init: str | None = None
    clip_range: float | None = None
    coef: float = 0.5
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UserError(f"critic.lr must be above 0, got {self.lr}")
        if self.shared and self.init is not None:
            raise UserError("critic.init is for a network of its own; with critic.shared there is none")
        if self.clip_range is not None and not self.clip_range > 0:
            raise UserError(f"critic.clip_range must be above 0 (null for no bound), got {self.clip_range}")
        if not 0 < self.coef < math.inf:
            raise UserError(f"critic.coef must be above 0, got {self.coef}")
        if self.warmup < 0:
            raise UserError(f"critic.warmup is a number of iterations, got {self.warmup}")


_MEASURED = ("policy/loss", "policy/kl_old", "policy/clip_fraction", "value/loss", "objective/entropy")


class PPO(PolicyAlgorithm):
    """PPO-clip with a critic, GAE and several epochs of shuffled minibatches per rollout.

    Args:
        task: where prompts come from.
        backbone: builds policy and critic.
        optimization: learning rate 1e-5 for pretrained models, 1e-4 or more for small ones from scratch.
        critic: the value network.
        kl: penalty on the KL to the reference, β 0.01 to 0.1.
        clip_range: ε, 0.1 to 0.3.
        inner_epochs: passes over each rollout, 4 to 10.
        minibatch_size: trajectories per step, across all devices.
        gamma: discount; 1 for language, 0.99 for control.
        lam: λ of GAE, 0.95.
        entropy_coef: weight of the entropy bonus.
        stop_kl: an update ends when KL(π_old‖π) exceeds this, in nats per action; None never.
        temperature: of the policy, 0.7 to 1.
        eval_every: iterations between evaluations on held-out prompts.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"prompts"})

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization = Optimization(),
        critic: CriticOptions = CriticOptions(),
        kl: KLControl = KLControl(),
        clip_range: float = 0.2,
        inner_epochs: int = 4,
        minibatch_size: int = 16,
        gamma: float = 1.0,
        lam: float = 0.95,
        entropy_coef: float = 0.0,
        stop_kl: float | None = None,
        temperature: float = 1.0,
        eval_every: int = 10,
    ) -> None:
        super().__init__(task, backbone, optimization, kl, temperature, eval_every)
        self.critic_options = critic
        self.clip_range = clip_range
        self.inner_epochs = inner_epochs
        self.minibatch_size = minibatch_size
        self.gamma, self.lam = gamma, lam
        self.entropy_coef = entropy_coef
        self.stop_kl = stop_kl
        self._check_arguments()

    def _check_arguments(self) -> None:
        limits = {
            "clip_range": (0 < self.clip_range < math.inf, "above 0", self.clip_range),
            "inner_epochs": (self.inner_epochs >= 1, "at least 1", self.inner_epochs),
            "minibatch_size": (self.minibatch_size >= 1, "at least 1", self.minibatch_size),
            "gamma": (0 <= self.gamma <= 1, "between 0 and 1", self.gamma),
            "lam": (0 <= self.lam <= 1, "between 0 and 1", self.lam),
            "entropy_coef": (0 <= self.entropy_coef < math.inf, "0 or more", self.entropy_coef),
            "stop_kl": (self.stop_kl is None or self.stop_kl > 0, "above 0 (null for never)", self.stop_kl),
        }
        for name, (fits, expected, value) in limits.items():
            if not fits:
                raise UserError(f"model.init_args.{name} must be {expected}, got {value}")
        if self.kl.needs_full_vocabulary:
            raise UserError(
                "model.init_args.kl.estimator exact is the same for every action in a state, so in a reward it cannot "
                "hold the policy back; expected k1 (unbiased), k2 or k3"
            )

    def setup(self, stage: str) -> None:
        """See that the devices can share a minibatch."""
        super().setup(stage)
        self.check_minibatch_size(self.minibatch_size)

    def configure_model(self) -> None:
        """Build policy, reference and critic, once."""
        super().configure_model()
        if not hasattr(self, "critic"):
            options = self.critic_options
            with on_cpu():
                self.critic = self.backbone.critic(self.policy, init=options.init, shared=options.shared)

    def networks(self) -> dict[str, nn.Module]:
        """Policy and critic."""
        return {"policy": self.policy, "value": self.critic}

    def learning_rates(self) -> dict[str, float]:
        """The critic's own, where it has one."""
        return {} if self.critic_options.lr is None else {"value": self.critic_options.lr}

    def export(self, path: Path) -> None:
        """The policy, and the critic beside it."""
        self.policy.save(path)
        self.critic.save(path / "critic")

    def prepare(self, scored: ScoredRollout) -> TrainBatch:
        """Penalize the KL to the reference, then advantages and returns by GAE."""
        rollout = scored.rollout
        mask = rollout.action_mask
        (old_values,) = self.over_own_rows(self._values, rollout)
        kl = self.reference_kl(rollout)
        self.check_rows("logprobs", rollout.old_logprobs + kl, scored)
        self.check_rows("values", old_values, scored)

        rewards = kl_shaped_rewards(scored.scores, kl, mask, kl_coef=self.kl.coef)
        next_values, continues = response_transitions(old_values, mask)
        advantages, returns = gae(rewards, old_values, next_values, continues, gamma=self.gamma, lam=self.lam)

        kl_sequence = sequence_sum(kl, mask).mean().item()
        self.row |= {
            "objective/reward": sequence_sum(rewards, mask).mean().item(),
            "objective/kl_ref_sequence": kl_sequence,
            "objective/kl_ref_token": token_mean(kl, mask, tokens=float(mask.sum())).item(),
            "value/explained_variance": explained_variance(old_values, returns, mask).item(),
            "kl_control/coef": self.kl.coef,
        }
        if not self._only_critic_learns:
            self.kl.update(kl_sequence)
        return TrainBatch(
            context=rollout.context,
            actions=rollout.actions,
            action_mask=mask,
            old_logprobs=rollout.old_logprobs,
            old_values=old_values,
            advantages=whiten(advantages, mask, eps=1e-8),
            returns=returns,
        )

    def update(self, batch: TrainBatch) -> dict[str, float]:
        """Several epochs of shuffled minibatches, ended early when the policy has moved far enough."""
        measured: list[dict[str, float]] = []
        for minibatch in self.minibatches(batch, size=self.minibatch_size, epochs=self.inner_epochs):
            measured.append(self._backward(minibatch))
            if self.stop_kl is not None and measured[-1]["policy/kl_old"] > self.stop_kl:
                self.forget_gradients()
                return self._summary(measured, steps=len(measured) - 1)
            self.apply_gradients(frozen={"policy"} if self._only_critic_learns else ())
        return self._summary(measured, steps=len(measured))

    def _backward(self, minibatch: Minibatch) -> dict[str, float]:
        """Gradients of a minibatch on this rank, and means over the whole minibatch."""
        names = [*_MEASURED, *(["value/clip_fraction"] if self.critic_options.clip_range is not None else [])]
        sums = {name: torch.zeros((), device=self.device) for name in names}
        largest = {name: torch.zeros((), device=self.device) for name in ("ratio", "gap")}
        for part in minibatch.parts:
            loss, measured, log_ratio = self._loss(part, minibatch.tokens)
            self.manual_backward(loss)
            sums = {name: sums[name] + measured[name].detach() for name in names}
            log_ratio = log_ratio.detach()
            largest["ratio"] = torch.maximum(largest["ratio"], log_ratio.exp().max())
            largest["gap"] = torch.maximum(largest["gap"], log_ratio.abs().max())
        reduced = self.reduced(sums, largest=largest)
        means = {name: reduced[name] / minibatch.tokens for name in names}
        self.check_finite("the PPO loss", means["policy/loss"] + means["value/loss"])
        return means | {name: reduced[name] for name in largest}

    def _summary(self, measured: list[dict[str, float]], *, steps: int) -> dict[str, float]:
        """Means over all minibatches, the one that ended the update included."""
        names = [name for name in measured[0] if name not in ("ratio", "gap")]
        return {name: sum(means[name] for means in measured) / len(measured) for name in names} | {
            "policy/ratio_max": max(means["ratio"] for means in measured),
            "policy/steps": steps,
            # before the first step: logprobs captured while decoding against those of the training forward
            "rollout/logprob_gap": measured[0]["gap"],
        }

    def _loss(self, part: TrainBatch, tokens: int) -> tuple[Tensor, dict[str, Tensor], Float[Tensor, " N"]]:
        """The loss of a microbatch over the tokens of the whole minibatch, sums to report, and the log ratios.

        Only the N actions that count are looked at, so that nothing in the padding can matter.
        """
        mask, value_clip_range = part.action_mask, self.critic_options.clip_range
        outputs = self.policy.evaluate(part.context, part.actions, mask)
        values = self.critic.values(part.context, part.actions, mask, trunk=outputs.hidden)[mask]
        advantages, returns, entropy = part.advantages[mask], part.returns[mask], outputs.entropy[mask]
        old_logprobs, old_values = part.old_logprobs[mask], part.old_values[mask]
        log_ratio = outputs.logprobs[mask] - old_logprobs

        surrogate = clipped_surrogate_loss(log_ratio, advantages, clip_range=self.clip_range)
        regression = value_loss(values, old_values, returns, value_clip_range=value_clip_range)
        policy_loss = (surrogate - self.entropy_coef * entropy).sum() / tokens
        critic_loss = (self.critic_options.coef if self.critic_options.shared else 1.0) * regression.sum() / tokens
        loss = critic_loss if self._only_critic_learns else policy_loss + critic_loss

        sums = {
            "policy/loss": surrogate.sum(),
            "policy/kl_old": k3(old_logprobs, old_logprobs + log_ratio).sum(),
            "policy/clip_fraction": ratio_is_clipped(log_ratio, advantages, clip_range=self.clip_range).sum(),
            "value/loss": regression.sum(),
            "objective/entropy": entropy.sum(),
        }
        if value_clip_range is not None:
            sums["value/clip_fraction"] = ((values - old_values).abs() > value_clip_range).sum()
        return loss, sums, log_ratio

    @property
    def _only_critic_learns(self) -> bool:
        return self.current_epoch < self.critic_options.warmup

    def _values(self, part: Rollout) -> tuple[Float[Tensor, "B T"]]:
        trunk = None
        if self.critic_options.shared:
            trunk = self.policy.hidden_before(part.context, part.actions, part.action_mask)
        return (self.critic.values(part.context, part.actions, part.action_mask, trunk=trunk),)
