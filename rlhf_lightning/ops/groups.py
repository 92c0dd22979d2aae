"""Advantages and selection within groups of G consecutive rows that answer the same prompt."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_lightning.ops.masking import masked
from rlhf_lightning.ops.scaling import magnitude


def _deviations(scores: Float[Tensor, " B"], group_size: int) -> tuple[Float[Tensor, "N G"], Float[Tensor, "N 1"]]:
    """Score minus the mean of its group, 0 in a group whose scores are equal but for rounding; and the unit it is in.

    Dividing by the standard deviation would amplify rounding.
    """
    groups = scores.reshape(-1, group_size)
    unit = magnitude(groups, each_row=True)  # sums and squares of scores of 1e19 and more would overflow
    groups = groups / unit
    groups = groups - groups[:, :1]
    deviations = groups - groups.mean(-1, keepdim=True)
    differ = groups_that_differ(scores, group_size=group_size).view_as(groups)
    return masked(deviations, differ), unit


def leave_one_out_advantages(scores: Float[Tensor, " B"], *, group_size: int) -> Float[Tensor, " B"]:
    """Score minus the mean of the other G − 1 of its group, which is G / (G − 1) · (score − mean of the group).

    Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; for language models Ahmadian et al. 2024,
    "Back to Basics".

    Args:
        group_size: G ≥ 2.
    """
    deviations, unit = _deviations(scores, group_size)
    return (deviations * group_size / (group_size - 1) * unit).reshape(-1)


def group_advantages(
    scores: Float[Tensor, " B"], *, group_size: int, normalize_std: bool, eps: float
) -> Float[Tensor, " B"]:
    """Score minus the mean of its group, divided by the group's standard deviation plus ε if ``normalize_std``.

    With division: Shao et al. 2024, "DeepSeekMath", § 4.1.2, which does not say which standard deviation is meant; here
    it is that of a sample (G − 1 in the denominator), as in TRL. Without: Liu et al. 2025, "Understanding
    R1-Zero-Like Training".

    Args:
        group_size: G ≥ 2.
        eps: ε, such as 1e-4; advantages of equal scores are 0 with any ε.
    """
    deviations, unit = _deviations(scores, group_size)
    if not normalize_std:
        return (deviations * unit).reshape(-1)
    std = (deviations.square().sum(-1, keepdim=True) / (group_size - 1)).sqrt()
    return (deviations / (std + eps / unit)).reshape(-1)


def best_of_group(
    scores: Float[Tensor, " B"], *, group_size: int, tolerance: float | Float[Tensor, ""] = 0.0
) -> Int[Tensor, " N"]:
    """Row number of the highest score of each group; the first one on a tie.

    Dong et al. 2023, "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment", algorithm 1.

    Args:
        tolerance: differences up to it, such as those of rounding, are a tie.
    """
    first_rows = torch.arange(0, len(scores), group_size, device=scores.device)
    groups = scores.reshape(-1, group_size)
    highest = groups >= groups.amax(-1, keepdim=True) - tolerance
    return first_rows + highest.to(torch.uint8).argmax(-1)


def groups_that_differ(scores: Float[Tensor, " B"], *, group_size: int) -> Bool[Tensor, " B"]:
    """True at every row of a group whose scores differ; groups of equal scores have advantage 0 and teach nothing.

    Scores whose difference is a rounding error, at most eight units in the last place of the largest, are equal.
    Dynamic sampling keeps the rows that are True: Yu et al. 2025, "DAPO", eq. 11.
    """
    groups = scores.reshape(-1, group_size)
    low, high = groups.aminmax(dim=-1)
    rounding = 8 * torch.finfo(scores.dtype).eps * torch.maximum(low.abs(), high.abs())
    return ~(high - low <= rounding).repeat_interleave(group_size)


def overlong_penalty(lengths: Int[Tensor, " B"], *, max_length: int, cache_length: int) -> Float[Tensor, " B"]:
    """0 up to max − cache tokens, then linearly down to −1 at max, −1 above.

    Soft overlong punishment: Yu et al. 2025, "DAPO", eq. 13.

    Args:
        lengths: tokens of each response.
        cache_length: ≥ 1, the tokens before ``max_length`` over which the penalty grows.
    """
    return ((max_length - cache_length - lengths) / cache_length).clamp(-1, 0)
