"""Masked reductions. Masks are bool and True means *counts*; what a mask hides may be NaN.

Every mean divides by a count that the caller gives, the count over the whole batch, so that the means of
microbatches and of ranks add up to the mean of the whole.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The values that count; 0 elsewhere."""
    return torch.where(mask, values, torch.zeros_like(values))


def masked_sum(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Sum of the values that count."""
    return masked(values, mask).sum()


def sequence_sum(values: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Sum over each sequence's own tokens."""
    return masked(values, action_mask).sum(-1)


def masked_mean_and_variance(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and population variance of the values that count; both NaN when none does."""
    count = mask.sum()
    values = masked(values, mask)
    # In float32 the mean of equal values can miss them, and whitening would blow that rounding error up to 1.
    mean = (values.sum(dtype=torch.float64) / count).to(values.dtype)
    return mean, masked_sum((values - mean) ** 2, mask) / count


def whiten(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], *, eps: float) -> Float[Tensor, "*shape"]:
    """Shift and scale the values that count to mean 0 and variance 1; the others become 0.

    Args:
        eps: added to the standard deviation, so that equal values become 0.
    """
    mean, variance = masked_mean_and_variance(values, mask)
    return masked((masked(values, mask) - mean) / (variance.sqrt() + eps), mask)


def explained_variance(
    predictions: Float[Tensor, "B T"], targets: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """1 − Var[target − prediction] / Var[target]: 1 is perfect, 0 is a constant, negative is worse than one.

    Targets that do not vary leave nothing to explain: 0.
    """
    _, residual = masked_mean_and_variance(targets - predictions, mask)
    _, total = masked_mean_and_variance(targets, mask)
    return torch.where(total > 0, 1 - residual / total, torch.zeros_like(total))
