"""Losses of policy and critic, per action: the caller averages them and names the denominator."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_surrogate_loss(
    log_ratio: Float[Tensor, "*B"], advantages: Float[Tensor, "*B"], *, clip_range: float
) -> Float[Tensor, "*B"]:
    """−min(r Â, clip(r, 1−ε, 1+ε) Â) with r = e^{log ratio}.

    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7, negated.

    Args:
        log_ratio: log π(a) − log π_old(a).
        clip_range: ε, 0.1 to 0.3.
    """
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)


def ratio_is_clipped(
    log_ratio: Float[Tensor, "*B"], advantages: Float[Tensor, "*B"], *, clip_range: float
) -> Bool[Tensor, "*B"]:
    """True where the clipped surrogate has no gradient: the ratio left the range in the advantage's direction."""
    ratio = log_ratio.exp()
    return ((ratio > 1 + clip_range) & (advantages > 0)) | ((ratio < 1 - clip_range) & (advantages < 0))


def value_loss(
    values: Float[Tensor, "*B"],
    old_values: Float[Tensor, "*B"],
    returns: Float[Tensor, "*B"],
    *,
    value_clip_range: float | None,
) -> Float[Tensor, "*B"]:
    """½ (V − R)², or the larger of it and ½ (clip(V, V_old ± ε) − R)².

    The clipped form is that of OpenAI Baselines' ppo2; Engstrom et al. 2020, "Implementation Matters", § 3.

    Args:
        value_clip_range: ε in reward units; None leaves the loss unclipped.
    """
    loss = 0.5 * (values - returns) ** 2
    if value_clip_range is None:
        return loss
    clipped = old_values + (values - old_values).clamp(-value_clip_range, value_clip_range)
    return torch.maximum(loss, 0.5 * (clipped - returns) ** 2)
