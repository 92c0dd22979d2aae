"""What scores go through before they are trained on: centered, scaled, bounded.

All of them read the scores of the global batch, which is the same on every rank, so ranks need not speak to each
other. They are applied in training alone: what is reported, and what a policy is judged by, stays in its own units.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import moments
from rlhf_lightning.ops.scaling import mean_and_std, min_max, signed_log, standardized


class Scaling:
    """A map of a batch of scores to scores.

    A subclass implements the call, and the rest where it learns from the batches that it has seen.
    """

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The scores of a global batch on another scale."""
        raise NotImplementedError

    def update(self, scores: Float[Tensor, " B"]) -> None:
        """Learn from a global batch, once an iteration, before it is scaled."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""


class ZScore(Scaling):
    """(R − mean) / std of the global batch, also called whitening over it.

    How far the rewards of an iteration are spread no longer matters, nor how good they are as a whole: the price of the
    KL weighs the same from the first iteration to the last. Scores that are all equal become 0, without ``center`` they
    stay as they are.

    Args:
        center: subtract the mean; without, only the spread is changed, and 0 stays 0.
    """

    def __init__(self, center: bool = True) -> None:
        self.center = center

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """By the batch's own mean and standard deviation."""
        return standardized(scores, *mean_and_std(scores), center=self.center)


class RunningZScore(Scaling):
    """(R − mean) / std of all scores so far, those of the batch included.

    Zheng et al. 2023, "Secrets of RLHF in Large Language Models Part I: PPO", with `Clip` after it. Unlike by `ZScore`,
    a batch that is better than those before has rewards above 0 as a whole. The moments move ever more slowly. Scores
    that have all been equal become 0, without ``center`` they stay as they are.

    Args:
        center: subtract the mean; without, only the spread is changed, and 0 stays 0.
    """

    def __init__(self, center: bool = True) -> None:
        self.center = center
        self.moments = moments.RunningMoments()

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """By the moments so far."""
        mean, variance = self.moments.mean.to(scores.device), self.moments.variance.to(scores.device)
        return standardized(scores, mean, variance.sqrt(), center=self.center)

    def update(self, scores: Float[Tensor, " B"]) -> None:
        """Take a batch into account."""
        self.moments.update(scores.cpu())

    def state_dict(self) -> dict[str, Tensor]:
        """The moments."""
        return {name: value.clone() for name, value in self.moments.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue with them."""
        self.moments.load_state_dict(state)


class MinMax(Scaling):
    """(R − min) / (max − min) of the global batch, from 0 to 1; scores that are all equal become 0.

    One extreme score decides what all others are worth: for scores with bounds of their own.
    """

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """By the batch's own extremes."""
        return min_max(scores)


class Log(Scaling):
    """sign(R) log(1 + |R|): close to R near 0, and slow far from it, for scores with long tails."""

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Each score by itself."""
        return signed_log(scores)


class Clip(Scaling):
    """Bounds: nothing is gained beyond them, where a reward model is least to be trusted.

    Args:
        low: least score; −5 to −10 after a z-score.
        high: largest score; 5 to 10 after a z-score.
    """

    def __init__(self, low: float, high: float) -> None:
        if not low < high:
            raise UserError(f"data.init_args.scaling: Clip needs low below high, got low {low} and high {high}")
        self.low, self.high = low, high

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Each score by itself."""
        return scores.clamp(self.low, self.high)
