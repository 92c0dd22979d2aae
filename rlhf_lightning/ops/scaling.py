"""Monotone rescaling of scores: the order of two scores never changes."""

import torch
from jaxtyping import Float
from torch import Tensor


def magnitude(values: Float[Tensor, "*shape"], *, each_row: bool = False) -> Float[Tensor, "..."]:
    """The power of two at or just below the largest absolute value; 1 where all values are 0.

    Dividing by it changes no digit, and what is left lies between −2 and 2: its squares and their sums cannot overflow.

    Args:
        each_row: one for each row (the last axis, which is kept with length 1) instead of one for all values.
    """
    sizes = values.detach().abs()
    largest = sizes.amax(-1, keepdim=True) if each_row else sizes.amax()
    mantissa, _ = torch.frexp(largest)  # at least 1/2 and below 1
    return torch.where(largest > 0, largest / (2 * mantissa), torch.ones_like(largest))


def mean_and_std(scores: Float[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and population standard deviation, in float64, so that equal scores deviate by exactly 0."""
    scores = scores.double()
    return scores.mean(), scores.std(correction=0)


def standardized(
    scores: Float[Tensor, " B"], mean: Float[Tensor, ""], std: Float[Tensor, ""], *, center: bool
) -> Float[Tensor, " B"]:
    """(R − mean) / std, or R / std.

    A standard deviation below 1e-7 of the mean is rounding error and is replaced by 1: equal scores become 0 if they
    are centered, and are unchanged otherwise.

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
    """sign(R) log(1 + |R|): close to R near 0, logarithmic for large scores."""
    return scores.sign() * scores.abs().log1p()
