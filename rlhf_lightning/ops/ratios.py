"""Log of the probability ratio between two policies, of whole sequences.

Everything stays a logarithm: a product of hundreds of ratios exceeds the range of float32. Values outside the mask may
be NaN, and no gradient reaches them.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.ops.masking import sequence_sum


def sequence_log_ratio(
    logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Log of the product of a sequence's token ratios: Σ log π(aₜ) − log π_old(aₜ)."""
    return sequence_sum(logprobs - old_logprobs, action_mask)


def mean_log_ratio(
    logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Log of the geometric mean of a sequence's token ratios, their mean logarithm; 0 for a row without actions.

    Zheng et al. 2025, "Group Sequence Policy Optimization", eq. 7.
    """
    lengths = action_mask.sum(-1).clamp(min=1)
    return sequence_log_ratio(logprobs, old_logprobs, action_mask) / lengths
