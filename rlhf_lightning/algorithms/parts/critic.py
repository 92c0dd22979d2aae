"""`ActorCritic`: what policy optimizers with a value function share: the critic, its fit, and advantages from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rlhf_lightning.algorithms.base.on_policy import PolicyAlgorithm
from rlhf_lightning.algorithms.parts.kl_control import KLControl
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.policy import PolicyOutputs
from rlhf_lightning.ops.advantages import gae
from rlhf_lightning.ops.losses import value_loss
from rlhf_lightning.ops.masking import explained_variance
from rlhf_lightning.ops.objectives import objective_rewards, weighted_advantages
from rlhf_lightning.tasks.task import Task
from rlhf_lightning.training.minibatches import Loss, Minibatch
from rlhf_lightning.training.module import on_cpu
from rlhf_lightning.training.optimization import Optimization
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
        per_objective: one value for each objective of the reward, and advantages that are normalized for each by
            itself before they are weighed: an objective pulls as hard as its weight says, however far its scores are
            spread. The KL price and penalties are shared among the objectives. What an algorithm whitens itself comes
            after, and only sets the scale of the sum. Where there is no critic, data.init_args.scaling ZScore does
            much the same to the scores.
    """

    lr: float | None = None
    shared: bool = False
    init: str | None = None
    clip_range: float | None = None
    coef: float = 0.5
    warmup: int = 0
    per_objective: bool = False

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
        if self.per_objective and self.init is not None:
            raise UserError(
                f"critic.init is {self.init}, and the head of a reward model is no value of each objective; expected "
                "null with critic.per_objective"
            )


class ActorCritic(PolicyAlgorithm):
    """A policy and a critic; advantages by GAE.

    Args:
        critic: the value network; None for an algorithm that has none.
        gamma: discount; 1 for language, 0.99 for control.
        lam: λ of GAE; 0 is one-step TD, 1 is the whole return less the value.
    """

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        optimization: Optimization,
        critic: CriticOptions | None,
        kl: KLControl,
        *,
        gamma: float,
        lam: float,
        temperature: float,
        eval_every: int,
    ) -> None:
        super().__init__(task, backbone, optimization, kl, temperature, eval_every)
        check_range("gamma", gamma, 0, 1)
        check_range("lam", lam, 0, 1)
        self.critic_options = critic
        self.gamma, self.lam = gamma, lam
        self.objectives: tuple[str, ...] = ()

    # -- networks ----------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build policy, reference and critic, once."""
        super().configure_model()
        options = self.critic_options
        if options is None or hasattr(self, "critic"):
            return
        if options.per_objective:
            self.objectives = tuple(self.rollouts.objectives)
            if not self.objectives:
                raise UserError(
                    "critic.per_objective is true, and the reward gives one score only; expected a reward with "
                    "objectives, or false"
                )
        heads = len(self.objectives) or None
        with on_cpu():
            self.critic = self.backbone.critic(self.policy, init=options.init, shared=options.shared, outputs=heads)

    def networks(self) -> dict[str, nn.Module]:
        """Policy and critic."""
        return {"policy": self.policy} | ({} if self.critic_options is None else {"value": self.critic})

    def learning_rates(self) -> dict[str, float]:
        """The critic's own, where it has one."""
        options = self.critic_options
        return {} if options is None or options.lr is None else {"value": options.lr}

    def export(self, path: Path) -> None:
        """The policy, and the critic beside it."""
        self.policy.save(path)
        if self.critic_options is not None:
            self.critic.save(path / "critic")

    @property
    def policy_learns(self) -> bool:
        """Not while the critic is warmed up."""
        return self.critic_options is None or self.current_epoch >= self.critic_options.warmup

    def frozen(self) -> Iterable[str]:
        """Networks that a step leaves as they are."""
        return () if self.policy_learns else ("policy",)

    # -- advantages --------------------------------------------------------------------------------------------

    def prepare(self, scored: ScoredRollout) -> TrainBatch:
        """Penalize the KL to the reference, then advantages and returns by GAE."""
        rollout = scored.rollout
        mask = rollout.action_mask
        values, next_values = self._old_values(scored)
        rewards, ref_logprobs = self.shaped_rewards(scored)
        rewards = rewards.to(values.dtype)[..., None]
        if self.objectives:
            scores, weights = self._weighed(scored, values)
            rewards = objective_rewards(rewards.squeeze(-1), scores, weights, mask)
        columns = (x.unbind(-1) for x in (rewards, values, next_values))
        estimates = [gae(*x, rollout.continues, gamma=self.gamma, lam=self.lam) for x in zip(*columns, strict=True)]
        advantages, returns = (torch.stack(x, dim=-1) for x in zip(*estimates, strict=True))
        self._report_explained_variance(values, returns, mask)
        if self.objectives:
            advantages = weighted_advantages(advantages, weights, mask, eps=1e-8)
        else:
            advantages, values, returns = (x.squeeze(-1) for x in (advantages, values, returns))
        return TrainBatch(
            context=rollout.context,
            actions=rollout.actions,
            action_mask=mask,
            old_logprobs=rollout.old_logprobs,
            old_values=values,
            advantages=advantages,
            returns=returns,
            ref_logprobs=ref_logprobs,
        )

    def _old_values(self, scored: ScoredRollout) -> tuple[Float[Tensor, "B T O"], Float[Tensor, "B T O"]]:
        """Values before and after each action, one column for each head of the critic."""
        columns = self.over_own_rows(self._values, scored.rollout)
        for column in columns:
            self.check_rows("values", column, scored)
        heads = len(columns) // 2
        return torch.stack(columns[:heads], dim=-1), torch.stack(columns[heads:], dim=-1)

    def _values(self, part: Rollout) -> tuple[Float[Tensor, "B T"], ...]:
        """Values of each head, then next values of each."""
        trunk = None
        if self.critic_options.shared:
            trunk = self.policy.hidden_before(part.context, part.actions, part.action_mask)
        values = self.critic.values(part.context, part.actions, part.action_mask, trunk=trunk)
        next_values = self.critic.next_values(part, values)
        return (*values.unbind(-1), *next_values.unbind(-1)) if self.objectives else (values, next_values)

    def _weighed(self, scored: ScoredRollout, like: Tensor) -> tuple[Float[Tensor, "B O"], Float[Tensor, " O"]]:
        """Scores of the objectives, and their weights."""
        scores = torch.stack([scored.objectives[name] for name in self.objectives], dim=-1).to(like)
        weights = like.new_tensor([scored.weights[name] for name in self.objectives])
        if not weights.sum() > 0:
            listed = ", ".join(f"{name} {scored.weights[name]:g}" for name in self.objectives)
            raise UserError(
                f"critic.per_objective shares the price of the KL among the objectives, and at {self.position()} their "
                f"weights are {listed}; expected a sum above 0"
            )
        return scores, weights

    def _report_explained_variance(
        self, values: Float[Tensor, "B T O"], returns: Float[Tensor, "B T O"], mask: Bool[Tensor, "B T"]
    ) -> None:
        pairs = zip(values.unbind(-1), returns.unbind(-1), strict=True)
        shares = [explained_variance(*pair, mask).item() for pair in pairs]
        named = {f"value/explained_variance_{name}": x for name, x in zip(self.objectives, shares, strict=False)}
        self.row |= {"value/explained_variance": sum(shares) / len(shares), **named}

    # -- the critic's own loss ---------------------------------------------------------------------------------

    def critic_loss(self, part: TrainBatch, whole: Minibatch, outputs: PolicyOutputs | None = None) -> Loss:
        """Regression on the returns; the mean over objectives, where each has a value of its own.

        Args:
            outputs: of the policy, for a critic on its trunk; None evaluates it.
        """
        options, mask = self.critic_options, part.action_mask
        if options.shared and outputs is None:
            outputs = self.policy.evaluate(part.context, part.actions, mask)
        trunk = outputs.hidden if options.shared else None
        values = self.critic.values(part.context, part.actions, mask, trunk=trunk)[mask]
        old_values, returns = part.old_values[mask], part.returns[mask]
        heads = values.shape[1:].numel()
        regression = value_loss(values, old_values, returns, value_clip_range=options.clip_range).sum() / heads
        sums = {"value/loss": regression}
        if options.clip_range is not None:
            sums["value/clip_fraction"] = ((values - old_values).abs() > options.clip_range).sum() / heads
        return Loss((options.coef if options.shared else 1.0) * regression / whole.sequences, sums)

    def fit_critic(self, batch: TrainBatch, *, size: int, epochs: int) -> dict[str, float]:
        """Some epochs of regression on the returns, the policy left alone."""
        measured = []
        for minibatch in self.minibatches(batch, size=size, epochs=epochs):
            measured.append(self.accumulate(minibatch, self.critic_loss))
            self.apply_gradients(frozen={"policy"})
        return means(measured)


def means(measured: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each number over minibatches."""
    return {name: sum(row[name] for row in measured) / len(measured) for name in (measured[0] if measured else ())}


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse an argument of the algorithm that is outside a closed range.

    Raises:
        UserError: it is.
    """
    if not low <= value <= high:
        raise UserError(f"model.init_args.{name} must be between {low} and {high}, got {value}")
