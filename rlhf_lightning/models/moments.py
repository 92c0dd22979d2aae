"""Running mean and variance, and the normalization of observations and rewards by them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

EPS = 1e-8
"""Added to variances before the square root."""


class RunningMoments(nn.Module):
    """Mean and variance of all values so far, updated batch by batch, in float64; 0 and 1 before the first batch.

    Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance": the result does not depend on how the
    values are divided into batches.

    Args:
        size: length of the vectors, whose entries each have their own moments; None for scalars.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int | None = None) -> None:
        super().__init__()
        shape = () if size is None else (size,)
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, values: Float[Tensor, "N ..."]) -> None:
        """Include more values."""
        values = values.double()
        old, new = int(self.count), len(values)
        mean = values.mean(0)
        shift = mean - self.mean
        squares = self.variance * old + ((values - mean) ** 2).sum(0) + shift**2 * (old * new / (old + new))
        self.variance.copy_(squares / (old + new))
        self.mean.add_(shift * (new / (old + new)))
        self.count.add_(new)


class ObservationNormalizer(nn.Module):
    """Observations minus their running mean, divided by their running standard deviation, clipped to ±10.

    As in OpenAI Baselines' VecNormalize (with its bound and ε); Engstrom et al. 2020, "Implementation Matters in Deep
    Policy Gradients", § 3. Unlike there, the moments are fixed while a rollout is collected: every observation of an
    iteration is normalized in the same way, before and after the update. The first rollout is not normalized.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.moments = RunningMoments(size)

    def forward(self, observations: Float[Tensor, "*N O"]) -> Float[Tensor, "*N O"]:
        """Normalized observations, which the networks read."""
        normalized = (observations - self.moments.mean) / (self.moments.variance + EPS).sqrt()
        return normalized.clamp(-10, 10).to(observations.dtype)

    def update(self, observations: Float[Tensor, "*N O"]) -> None:
        """Update the moments with raw observations of the environment."""
        self.moments.update(observations.flatten(0, -2))


class RewardScale(RunningMoments):
    """Rewards divided by the running standard deviation of the discounted return so far, Rₜ = γ cₜ₋₁ Rₜ₋₁ + rₜ.

    As in OpenAI Baselines' VecNormalize; Engstrom et al. 2020, "Implementation Matters in Deep Policy Gradients", § 3.
    Unlike there, the scale is fixed while a rollout is collected, and scaled rewards are not clipped: a common scale
    does not change the optimal policy, clipping can. The first rollout is scaled by its own standard deviation.
    """

    carried: Tensor

    def __init__(self, environments: int, *, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("carried", torch.zeros(environments, dtype=torch.float64))

    def extend(self, rewards: Float[Tensor, "B T"], ended: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Discounted returns so far, R, at each step of a rollout that continues the previous one."""
        returns = torch.empty_like(rewards, dtype=torch.float64)
        running = self.carried.to(rewards.device)
        for t in range(rewards.shape[1]):
            returns[:, t] = self.gamma * running + rewards[:, t]
            running = torch.where(ended[:, t], 0.0, returns[:, t])
        self.carried = running.cpu()
        return returns

    def scaled(self, rewards: Float[Tensor, "B T"], returns: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The rewards of a rollout, scaled by the moments from before it.

        Args:
            returns: the rollout's own discounted returns, from `extend`.
        """
        variance = self.variance if self.count else returns.var(correction=0)
        return rewards / (variance.to(rewards.device) + EPS).sqrt()

    def update(self, returns: Float[Tensor, "B T"]) -> None:
        """Update the scale with the discounted returns of a rollout."""
        super().update(returns.cpu().flatten())
