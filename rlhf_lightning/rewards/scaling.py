"""Scalings of scores before they are trained on: centered, scaled, bounded.

They read the scores of the global batch, which is the same on every rank, so no communication is needed. They apply
to training only: reported and held-out scores stay in their own units.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import moments
from rlhf_lightning.ops.scaling import mean_and_std, min_max, signed_log, standardized
from rlhf_lightning.records.constructed import Constructed


class Scaling(Constructed):
    """A map from a batch of scores to a batch of scores.

    A subclass implements the call, and the other methods if it depends on earlier batches.
    """

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The scaled scores of a global batch."""
        raise NotImplementedError

    def update(self, scores: Float[Tensor, " B"]) -> None:
        """Update the state by a global batch, once per iteration, before the batch is scaled."""

    def state_dict(self) -> dict[str, Tensor]:
        """State to save in a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state from a checkpoint."""


class ZScore(Scaling):
    """(R − mean) / std of the global batch, also called whitening.

    The rewards of each iteration have the same mean and spread, so the KL coefficient has the same effect in all
    iterations. Scores that are all equal become 0; without ``center`` they do not change.

    Args:
        center: subtract the mean; if False, scores are only divided, and 0 stays 0.
    """

    def __init__(self, center: bool = True) -> None:
        self.center = center

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Scale by the mean and standard deviation of the batch."""
        return standardized(scores, *mean_and_std(scores), center=self.center)


class RunningZScore(Scaling):
    """(R − mean) / std of all scores so far, including those of the batch.

    Zheng et al. 2023, "Secrets of RLHF in Large Language Models Part I: PPO", followed by `ClipScores`. Unlike with
    `ZScore`, a batch that is better than the earlier ones has a mean above 0. The moments change more and more slowly.
    If all scores so far are equal they become 0; without ``center`` they do not change.

    Args:
        center: subtract the mean; if False, scores are only divided, and 0 stays 0.
    """

    def __init__(self, center: bool = True) -> None:
        self.center = center
        self.moments = moments.RunningMoments()

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Scale by the moments so far."""
        mean, variance = self.moments.mean.to(scores.device), self.moments.variance.to(scores.device)
        return standardized(scores, mean, variance.sqrt(), center=self.center)

    def update(self, scores: Float[Tensor, " B"]) -> None:
        """Add a batch to the moments."""
        self.moments.update(scores.cpu())

    def state_dict(self) -> dict[str, Tensor]:
        """The moments."""
        return {name: value.clone() for name, value in self.moments.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the moments."""
        self.moments.load_state_dict(state)


class MinMax(Scaling):
    """(R − min) / (max − min) of the global batch, from 0 to 1; scores that are all equal become 0.

    A single extreme score changes all others, so this is meant for bounded scores.
    """

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Scale by the extremes of the batch."""
        return min_max(scores)


class Log(Scaling):
    """sign(R) log(1 + |R|), for scores with long tails: close to R near 0, and compressed far from it."""

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Scale each score independently."""
        return signed_log(scores)


class ClipScores(Scaling):
    """Bounds on the scores: nothing is gained beyond them, where a reward model is least reliable.

    Args:
        low: lower bound; −5 to −10 after a z-score.
        high: upper bound; 5 to 10 after a z-score.
    """

    def __init__(self, low: float, high: float) -> None:
        if not low < high:
            raise UserError(f"data.init_args.scaling: ClipScores needs low below high, got low {low} and high {high}")
        self.low, self.high = low, high

    def __call__(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Scale each score independently."""
        return scores.clamp(self.low, self.high)
