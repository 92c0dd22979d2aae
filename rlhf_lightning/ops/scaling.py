"""Scores on another scale; none of these turns the order of two scores around."""

import torch
from jaxtyping import Float
from torch import Tensor


def mean_and_std(scores: Float[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and population standard deviation, in float64, so that equal scores deviate by exactly 0."""
    scores = scores.double()
    return scores.mean(), scores.std(correction=0)


def standardized(
    scores: Float[Tensor, " B"], mean: Float[Tensor, ""], std: Float[Tensor, ""], *, center: bool
) -> Float[Tensor, " B"]:
    """(R − mean) / std, or R / std.

    A deviation that is no more than rounding, below 1e-7 of the mean, counts as none, and none divides by 1: equal
    scores become 0 where they are centered and stay as they are otherwise.

    Args:
        center: subtract the mean.
    """
    divisor = torch.where(std > 1e-7 * mean.abs(), std, torch.ones_like(std))
    shifted = scores.double() - mean if center else scores.double()
    return (shifted / divisor).to(scores.dtype)


def min_max(scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """(R − min) / (max − min), from 0 to 1; equal scores become 0."""
    low, high = scores.double().aminmax()
    divisor = torch.where(high > low, high - low, torch.ones_like(low))
    return ((scores.double() - low) / divisor).to(scores.dtype)


def signed_log(scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """sign(R) log(1 + |R|): close to R near 0, and slow far from it."""
    return scores.sign() * scores.abs().log1p()
