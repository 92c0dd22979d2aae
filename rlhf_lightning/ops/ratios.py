"""Log of the probability ratio between two policies, by token and by sequence.

Everything stays a logarithm: a product of hundreds of ratios leaves the range of float32. What the mask hides may be
NaN, and no gradient reaches it.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.ops.masking import sequence_sum


def token_log_ratio(
    logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Δₜ = log π(aₜ) − log π_old(aₜ) at every action; 0 where the mask is False."""
    return torch.where(action_mask, logprobs - old_logprobs, torch.zeros_like(logprobs))


def sequence_log_ratio(
    logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Log of the product of a sequence's token ratios: Σ Δₜ = log π(a₁ … a_T) − log π_old(a₁ … a_T)."""
    return sequence_sum(logprobs - old_logprobs, action_mask)


def mean_log_ratio(
    logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Log of the geometric mean of a sequence's token ratios: Σ Δₜ / length; 0 for a row without actions.

    Zheng et al. 2025, "Group Sequence Policy Optimization", eq. 7.
    """
    lengths = action_mask.sum(-1).clamp(min=1)
    return sequence_log_ratio(logprobs, old_logprobs, action_mask) / lengths
