"""What REINFORCE subtracts from the returns, so that its gradient varies less.

A baseline that does not depend on the actions it judges leaves the expected gradient as it is (Williams 1992; Sutton
et al. 2000, "Policy Gradient Methods for Reinforcement Learning with Function Approximation"). With which one the
gradient varies least depends on the task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.algorithms.parts.critic import Critic, CriticOptions, Estimate, ValueFunction
from rlhf_lightning.errors import UserError
from rlhf_lightning.ops.advantages import discounted_returns
from rlhf_lightning.records.metrics import Metric
from rlhf_lightning.types import ScoredRollout


@dataclass
class Baseline(ABC):
    """A baseline that is subtracted from returns."""

    learned: ClassVar[tuple[str, ...]] = ()
    """Attributes that a checkpoint saves; a value network is saved as a network."""

    @abstractmethod
    def build_critic(self, *, gamma: float, microbatch_size: int | None) -> ValueFunction:
        """The value function that it needs."""

    def metrics(self) -> tuple[Metric, ...]:
        """What it logs."""
        return ()

    def state_dict(self) -> dict[str, float]:
        """The state that a checkpoint saves."""
        return {name: getattr(self, name) for name in self.learned}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state of a checkpoint."""
        for name in self.learned:
            setattr(self, name, state[name])


@dataclass
class ScalarBaseline(Baseline):
    """One number for all actions of a batch."""

    def build_critic(self, *, gamma: float, microbatch_size: int | None) -> ValueFunction:
        """None."""
        return ValueFunction()

    def estimate(self, scored: ScoredRollout, rewards: Float[Tensor, "B T"], *, gamma: float) -> Estimate:
        """The discounted returns from each action on, less the baseline, which is then updated with this batch.

        Args:
            rewards: of each action, the price of the KL subtracted.
        """
        rollout = scored.rollout
        continues = rollout.continues
        returns = discounted_returns(rewards.to(rollout.old_logprobs.dtype), continues, gamma=gamma)
        starts = rollout.action_mask & ~torch.nn.functional.pad(continues[:, :-1], (1, 0), value=False)
        value = self.value(returns[starts])
        self.update(returns[starts])
        return Estimate(returns - value, metrics={"policy/baseline": value.item()})

    def metrics(self) -> tuple[Metric, ...]:
        """The number."""
        return (Metric("Baseline", "subtracted from every return", "policy/baseline"),)

    @abstractmethod
    def value(self, episode_returns: Float[Tensor, " E"]) -> Float[Tensor, ""]:
        """The number for this batch.

        Args:
            episode_returns: of each episode in it, from its first action in the batch on.
        """

    def update(self, episode_returns: Float[Tensor, " E"]) -> None:
        """Update the baseline with a batch, after its advantages were computed."""


@dataclass
class NoBaseline(ScalarBaseline):
    """0: the returns as they are."""

    def value(self, episode_returns: Float[Tensor, " E"]) -> Float[Tensor, ""]:
        """0."""
        return episode_returns.new_zeros(())


@dataclass
class BatchMean(ScalarBaseline):
    """The mean return of the batch's own episodes, each weighing the same, however long it is.

    One of the B episodes in that mean is the one that is judged, so that at γ = 1 the expected gradient is
    (1 − 1/B) ∇J, in the right direction and a little short.
    """

    def value(self, episode_returns: Float[Tensor, " E"]) -> Float[Tensor, ""]:
        """The mean."""
        return episode_returns.mean()


@dataclass
class MovingAverage(ScalarBaseline):
    """Exponential moving average of the mean returns of the batches before this one; 0 for the first.

    Williams 1992 calls it reinforcement comparison. The weights of the batches so far add up to 1 (as in Adam's bias
    correction), so that the average does not start near 0.

    Args:
        decay: share that the average keeps of itself; 0 takes the last batch alone, 0.9 about the last ten.
    """

    decay: float = 0.9

    learned = ("sum", "weight")

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UserError(f"baseline.decay must be at least 0 and below 1, got {self.decay}")
        self.sum, self.weight = 0.0, 0.0

    @classmethod
    def after(cls, mean_return: float) -> MovingAverage:
        """A moving average that starts from one batch with this mean return."""
        average = cls()
        average.update(torch.tensor([mean_return]))
        return average

    def value(self, episode_returns: Float[Tensor, " E"]) -> Float[Tensor, ""]:
        """The average before this batch."""
        return episode_returns.new_tensor(self.sum / self.weight if self.weight else 0.0)

    def update(self, episode_returns: Float[Tensor, " E"]) -> None:
        """Update the average with this batch's mean."""
        mean = episode_returns.mean(dtype=torch.float64).item()
        self.sum = self.decay * self.sum + (1 - self.decay) * mean
        self.weight = self.decay * self.weight + (1 - self.decay)


@dataclass
class ValueBaseline(Baseline):
    """A value function, fitted to the returns by regression.

    Args:
        critic: the value network.
    """

    critic: CriticOptions = CriticOptions()

    def build_critic(self, *, gamma: float, microbatch_size: int | None) -> Critic:
        """With λ = 1: advantages are returns less values."""
        return Critic(self.critic, gamma=gamma, lam=1.0, microbatch_size=microbatch_size)
