"""Running mean and variance, and what is scaled by them: observations and rewards."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class RunningMoments(nn.Module):
    """Mean and variance of all values so far, joined batch by batch, in float64.

    Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance": exact however the values
    are cut into batches. Before the first they are 0 and 1.

    Args:
        size: length of the vectors whose entries are each counted alone; None for plain numbers.
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
        """Take more values into account."""
        values = values.double()
        old, new = int(self.count), len(values)
        mean = values.mean(0)
        shift = mean - self.mean
        squares = self.variance * old + ((values - mean) ** 2).sum(0) + shift**2 * (old * new / (old + new))
        self.variance.copy_(squares / (old + new))
        self.mean.add_(shift * (new / (old + new)))
        self.count.add_(new)


class ObservationNormalizer(nn.Module):
    """Observations less their running mean, over their running standard deviation, within ±10.

    As in OpenAI Baselines' VecNormalize (bound and ε too); Engstrom et al. 2020, "Implementation Matters in Deep Policy
    Gradients", § 3. Unlike there the moments rest while a rollout is collected: every observation of an iteration is
    read in the same way, before and after the update. The first rollout is read as it is.

    Args:
        size: length of an observation.
        bound: of the result.
        eps: added to the variance.
    """

    def __init__(self, size: int, *, bound: float = 10.0, eps: float = 1e-8) -> None:
        super().__init__()
        self.moments = RunningMoments(size)
        self.bound, self.eps = bound, eps

    def forward(self, observations: Float[Tensor, "*N O"]) -> Float[Tensor, "*N O"]:
        """As the networks read them."""
        scaled = (observations - self.moments.mean) / (self.moments.variance + self.eps).sqrt()
        return scaled.clamp(-self.bound, self.bound).to(observations.dtype)

    def update(self, observations: Float[Tensor, "*N O"]) -> None:
        """Move the moments by observations as the environment showed them."""
        self.moments.update(observations.flatten(0, -2))


class RewardScale:
    """Rewards over the running standard deviation of the discounted return so far, Rₜ = γ cₜ₋₁ Rₜ₋₁ + rₜ.

    As in OpenAI Baselines' VecNormalize; Engstrom et al. 2020, "Implementation Matters in Deep Policy Gradients", § 3.
    Unlike there the scale rests while a rollout is collected, and scaled rewards are not clipped: one scale for all
    changes no optimal policy, clipping can. The first rollout, before which nothing is known, is scaled by its own.

    Args:
        environments: number of them.
        gamma: γ.
        eps: added to the variance.
    """

    def __init__(self, environments: int, *, gamma: float, eps: float = 1e-8) -> None:
        self.moments = RunningMoments()
        self.gamma, self.eps = gamma, eps
        self.carried = torch.zeros(environments, dtype=torch.float64)

    def extend(self, rewards: Float[Tensor, "B T"], ended: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The discounted returns so far at each step of a rollout that begins where the last one stopped."""
        returns = torch.empty_like(rewards, dtype=torch.float64)
        running = self.carried.to(rewards.device)
        for t in range(rewards.shape[1]):
            returns[:, t] = self.gamma * running + rewards[:, t]
            running = torch.where(ended[:, t], 0.0, returns[:, t])
        self.carried = running.cpu()
        return returns

    def scaled(self, rewards: Float[Tensor, "B T"], returns: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The rewards of a rollout, as far as the scale is known before it.

        Args:
            returns: its discounted returns so far.
        """
        variance = self.moments.variance if self.moments.count else returns.var(correction=0)
        return rewards / (variance.to(rewards.device) + self.eps).sqrt()

    def update(self, returns: Float[Tensor, "B T"]) -> None:
        """Move the scale by the discounted returns of a rollout."""
        self.moments.update(returns.cpu().flatten())

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {**self.moments.state_dict(), "carried": self.carried}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        self.carried = state["carried"].clone()
        self.moments.load_state_dict({name: value for name, value in state.items() if name != "carried"})
