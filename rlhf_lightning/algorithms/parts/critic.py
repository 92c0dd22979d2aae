"""`Critic`: a value function, the advantages that it gives, and its own loss."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.algorithms.parts.metrics import VALUE
from rlhf_lightning.distributed import over_own_rows
from rlhf_lightning.errors import UserError, check_limits
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.critic import ValueNetwork
from rlhf_lightning.models.policy import Policy, PolicyOutputs
from rlhf_lightning.ops.advantages import gae
from rlhf_lightning.ops.losses import value_loss
from rlhf_lightning.ops.masking import explained_variance, selected
from rlhf_lightning.ops.objectives import objective_rewards, weighted_advantages
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.rollout.checks import check_finite
from rlhf_lightning.training.minibatches import BatchT, Loss, Minibatch
from rlhf_lightning.types import Rollout, ScoredRollout


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
        unclipped = self.clip_range is None or self.clip_range > 0
        limits = {
            "lr": (self.lr is None or 0 < self.lr < math.inf, "above 0", self.lr),
            "clip_range": (unclipped, "above 0 (null for no bound)", self.clip_range),
            "coef": (0 < self.coef < math.inf, "above 0", self.coef),
            "warmup": (self.warmup >= 0, "a number of iterations", self.warmup),
        }
        check_limits("critic", limits)
        if self.shared and self.init is not None:
            raise UserError("critic.init is for a network of its own; with critic.shared there is none")
        if self.per_objective and self.init is not None:
            raise UserError(
                f"critic.init is {self.init}, and the head of a reward model is no value of each objective; expected "
                "null with critic.per_objective"
            )

    def reads(self) -> list[str]:
        """The folder of the reward model that the network starts from."""
        return [] if self.init is None else [self.init]


@dataclass
class Estimate:
    """Advantages of a rollout, with the regression targets of the critic where there is one.

    Args:
        advantages: of each action.
        old_values: of a critic, at collection; None without one.
        returns: what the critic is fitted to.
        metrics: to report.
    """

    advantages: Float[Tensor, "B T"]
    old_values: Float[Tensor, "B T *O"] | None = None
    returns: Float[Tensor, "B T *O"] | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class ValueFunction(nn.Module):
    """What an iteration asks of a value function. This one is none: nothing to train, to report or to export."""

    warmup = 0
    """Iterations at the start in which only the value function learns."""

    def build(self, backbone: Backbone, policy: Policy, objectives: Callable[[], Sequence[str]]) -> None:
        """Nothing to build."""

    def networks(self) -> dict[str, nn.Module]:
        """None."""
        return {}

    def learning_rates(self) -> dict[str, float]:
        """None."""
        return {}

    def save(self, path: Path) -> None:
        """Nothing to write."""

    def metrics(self) -> tuple[Metric, ...]:
        """None."""
        return ()

    def loss(
        self, policy: Policy, part: BatchT, minibatch: Minibatch[BatchT], outputs: PolicyOutputs | None = None
    ) -> Loss:
        """0."""
        return Loss(torch.zeros((), device=part.actions.device), {})


class Critic(ValueFunction):
    """A value network, advantages by GAE, and regression on the returns.

    Args:
        options: of the network.
        gamma: discount; 1 for language, 0.99 for control.
        lam: λ of GAE; 0 is one-step TD, 1 is the whole return less the value.
        microbatch_size: sequences that are evaluated at one time; None for all at once.
    """

    network: ValueNetwork

    def __init__(self, options: CriticOptions, *, gamma: float, lam: float, microbatch_size: int | None) -> None:
        super().__init__()
        check_range("gamma", gamma, 0, 1)
        check_range("lam", lam, 0, 1)
        self.options = options
        self.gamma, self.lam = gamma, lam
        self.microbatch_size = microbatch_size
        self.warmup = options.warmup
        self.objectives: tuple[str, ...] = ()

    def build(self, backbone: Backbone, policy: Policy, objectives: Callable[[], Sequence[str]]) -> None:
        """Build the network.

        Args:
            objectives: gives the names of the objectives that the reward scores each by itself.
        """
        options = self.options
        if options.per_objective:
            self.objectives = tuple(objectives())
            if not self.objectives:
                raise UserError(
                    "critic.per_objective is true, and the reward gives one score only; expected a reward with "
                    "objectives, or false"
                )
        heads = len(self.objectives) or None
        self.network = backbone.critic(policy, init=options.init, shared=options.shared, outputs=heads)

    def networks(self) -> dict[str, nn.Module]:
        """The value network."""
        return {"value": self.network}

    def learning_rates(self) -> dict[str, float]:
        """Its own, where it has one."""
        return {} if self.options.lr is None else {"value": self.options.lr}

    def save(self, path: Path) -> None:
        """Write the network beside the policy."""
        self.network.save(path / "critic")

    def metrics(self) -> tuple[Metric, ...]:
        """Of its fit, in all and to each objective."""
        named = (
            Metric(
                f"Explained variance: {name.replace('_', ' ')}",
                "of the objective's returns, by the critic",
                f"value/explained_variance_{name}",
                lowest=-1.0,
            )
            for name in self.objectives
        )
        return (*VALUE, *named)

    # -- advantages --------------------------------------------------------------------------------------------

    def estimate(self, policy: Policy, scored: ScoredRollout, rewards: Float[Tensor, "B T"]) -> Estimate:
        """Advantages and returns by GAE.

        Args:
            rewards: of each action, the price of the KL subtracted.
        """
        mask, continues = scored.rollout.action_mask, scored.rollout.continues
        values, next_values = self._old_values(policy, scored)
        rewards = rewards.to(values.dtype)[..., None]
        if self.objectives:
            scores, weights = self._weighed(scored, values)
            rewards = objective_rewards(rewards.squeeze(-1), scores, weights, mask)
        columns = zip(*(x.unbind(-1) for x in (rewards, values, next_values)), strict=True)
        estimates = [
            gae(reward, value, next_value, continues, gamma=self.gamma, lam=self.lam)
            for reward, value, next_value in columns
        ]
        advantages, returns = (torch.stack(x, dim=-1) for x in zip(*estimates, strict=True))
        shares = [
            explained_variance(*pair, mask).item() for pair in zip(values.unbind(-1), returns.unbind(-1), strict=True)
        ]
        named = {f"value/explained_variance_{name}": x for name, x in zip(self.objectives, shares, strict=False)}
        metrics = {"value/explained_variance": sum(shares) / len(shares), **named}
        if self.objectives:
            return Estimate(weighted_advantages(advantages, weights, mask, eps=1e-8), values, returns, metrics)
        return Estimate(advantages.squeeze(-1), values.squeeze(-1), returns.squeeze(-1), metrics)

    def _old_values(
        self, policy: Policy, scored: ScoredRollout
    ) -> tuple[Float[Tensor, "B T O"], Float[Tensor, "B T O"]]:
        """Values before and after each action, one column for each head of the network."""
        columns = over_own_rows(
            lambda part: self._columns(policy, part), scored.rollout, microbatch_size=self.microbatch_size
        )
        for column in columns:
            check_finite("values", column, scored)
        heads = len(columns) // 2
        return torch.stack(columns[:heads], dim=-1), torch.stack(columns[heads:], dim=-1)

    def _columns(self, policy: Policy, part: Rollout) -> tuple[Float[Tensor, "B T"], ...]:
        """Values of each head, then next values of each."""
        trunk = policy.hidden_before(part) if self.options.shared else None
        values = self.network.values(part, trunk)
        next_values = self.network.next_values(part, values)
        return (*values.unbind(-1), *next_values.unbind(-1)) if self.objectives else (values, next_values)

    def _weighed(self, scored: ScoredRollout, like: Tensor) -> tuple[Float[Tensor, "B O"], Float[Tensor, " O"]]:
        """Scores [B, O] and weights [O] of the objectives, whose sum must be above 0."""
        scores = torch.stack([scored.objectives[name] for name in self.objectives], dim=-1).to(like)
        weights = like.new_tensor([scored.weights[name] for name in self.objectives])
        if not weights.sum() > 0:
            listed = ", ".join(f"{name} {scored.weights[name]:g}" for name in self.objectives)
            raise UserError(
                "critic.per_objective shares the price of the KL among the objectives, and their weights are "
                f"{listed}; expected a sum above 0"
            )
        return scores, weights

    # -- its own loss ------------------------------------------------------------------------------------------

    def loss(
        self, policy: Policy, part: BatchT, minibatch: Minibatch[BatchT], outputs: PolicyOutputs | None = None
    ) -> Loss:
        """Regression on the returns; the mean over objectives, where each has a value of its own.

        Args:
            outputs: of the policy, for a critic on its trunk; None evaluates it.
        """
        if part.old_values is None or part.returns is None:
            raise ValueError("a batch for the critic has old_values and returns")
        mask, trunk = part.action_mask, None
        if self.options.shared:
            outputs = outputs or policy.evaluate(part.context, part.actions, mask)
            trunk = outputs.hidden
        values = selected(self.network.values(part, trunk), mask)
        old_values, returns = selected(part.old_values, mask), selected(part.returns, mask)
        heads = values.shape[1:].numel()
        regression = value_loss(values, old_values, returns, value_clip_range=self.options.clip_range).sum() / heads
        sums = {"value/loss": regression}
        if self.options.clip_range is not None:
            sums["value/clip_fraction"] = ((values - old_values).abs() > self.options.clip_range).sum() / heads
        return Loss((self.options.coef if self.options.shared else 1.0) * regression / minibatch.sequences, sums)


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse an argument of the algorithm that is outside a closed range.

    Raises:
        UserError: it is.
    """
    if not low <= value <= high:
        raise UserError(f"model.init_args.{name} must be between {low} and {high}, got {value}")


def with_todays_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of checkpoints of layout 1, in which ``critic`` was the network itself."""
    return {re.sub(r"^critic\.", "critic.network.", name): tensor for name, tensor in state.items()}
