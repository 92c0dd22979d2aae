"""Selection and reduction by masks. Masks are bool and True means *counts*; values outside a mask may be NaN."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from rlhf_lightning.ops.scaling import magnitude


def masked(values: Shaped[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The values where the mask is True; 0 elsewhere."""
    return torch.where(mask, values, torch.zeros_like(values))


def masked_sum(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Sum of the values where the mask is True."""
    return masked(values, mask).sum()


def sequence_sum(values: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Sum over the tokens of each sequence."""
    return masked(values, action_mask).sum(-1)


def selected(values: Shaped[Tensor, "B T ..."], mask: Bool[Tensor, "B T"]) -> Shaped[Tensor, "N ..."]:
    """``values[mask]``, whose gradient takes several times as long as this one's."""
    return values.flatten(0, 1).index_select(0, mask.flatten().nonzero().squeeze(1))


def scattered(values: Shaped[Tensor, " N"], mask: Bool[Tensor, "B T"]) -> Shaped[Tensor, "B T"]:
    """The inverse of ``x[mask]``: one value for each position where the mask is True, in order; 0 elsewhere."""
    blank = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    return blank.masked_scatter(mask, values)


def masked_mean_and_variance(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and population variance of the values where the mask is True; NaN if it is True nowhere."""
    count = mask.sum()
    values = masked(values, mask)
    # In float32 the mean of equal values can differ from them, and whitening would amplify that rounding error to 1.
    mean = (values.sum(dtype=torch.float64) / count).to(values.dtype)
    return mean, masked_sum((values - mean) ** 2, mask) / count


def whiten(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], *, eps: float) -> Float[Tensor, "*shape"]:
    """Shift and scale the values where the mask is True to mean 0 and variance 1; the others become 0.

    Args:
        eps: added to the standard deviation, so that equal values become 0 instead of NaN.
    """
    scale = magnitude(masked(values, mask))
    values = masked(values, mask) / scale
    mean, variance = masked_mean_and_variance(values, mask)
    return masked((values - mean) / (variance.sqrt() + eps / scale), mask)


def explained_variance(
    predictions: Float[Tensor, "B T"], targets: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """1 − Var[target − prediction] / Var[target]: 1 is perfect, 0 is as good as a constant, less is worse.

    It is 0 where the targets do not vary.
    """
    scale = magnitude(masked(targets, mask))
    _, residual = masked_mean_and_variance((targets - predictions) / scale, mask)
    _, total = masked_mean_and_variance(targets / scale, mask)
    return masked(1 - residual / total, total > 0)
