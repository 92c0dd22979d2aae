"""Losses of policy and critic, one value per action: the caller averages them and chooses the denominator.

Gradients are meant to flow through ``logprobs``, ``log_ratio`` and ``values``; everything else is data.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.ops.masking import masked, masked_sum


def policy_gradient_loss(logprobs: Float[Tensor, "*B"], advantages: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """−Â log π(a): the expected gradient is the gradient of the negative return.

    Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning".
    """
    return -advantages * logprobs


def _log_ratio_bounds(
    advantages: Float[Tensor, "*B"], clip_range: float, clip_range_high: float, dual_clip: float | None
) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
    """Log ratios below and above which the clipped surrogate is constant, given the sign of each advantage."""
    negative = advantages < 0
    lowest = math.log1p(-clip_range) if clip_range < 1 else -math.inf
    highest = math.inf if dual_clip is None else math.log(dual_clip)
    low = torch.full_like(advantages, -math.inf).masked_fill(negative, lowest)
    return low, torch.full_like(advantages, math.log1p(clip_range_high)).masked_fill(negative, highest)


def clipped_surrogate_loss(
    log_ratio: Float[Tensor, "*B"],
    advantages: Float[Tensor, "*B"],
    *,
    clip_range: float,
    clip_range_high: float,
    dual_clip: float | None,
) -> Float[Tensor, "*B"]:
    """−min(r Â, clip(r, 1−ε, 1+ε′) Â) with r = e^{log ratio}; for Â < 0 at most −c Â.

    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7, negated. Two ranges: Yu et al. 2025,
    "DAPO", eq. 10. Dual clip: Ye et al. 2020, "Mastering Complex Control in MOBA Games with Deep Reinforcement
    Learning".

    Args:
        log_ratio: log π(a) − log π_old(a).
        clip_range: ε, 0.1 to 0.3; with ε ≥ 1 the ratio has no lower bound.
        clip_range_high: ε′, the same as ε in PPO; infinite for no upper bound.
        dual_clip: c > 1, such as 3, upper bound of the ratio where Â < 0; None for no bound.
    """
    # Only one of the two bounds is active, depending on the sign of Â. Clipping the logarithm there gives the same
    # value, and a gradient of 0 instead of 0 · ∞ where the ratio itself would overflow.
    low, high = _log_ratio_bounds(advantages, clip_range, clip_range_high, dual_clip)
    return -log_ratio.clamp(low, high).exp() * advantages


def ratio_is_clipped(
    log_ratio: Float[Tensor, "*B"],
    advantages: Float[Tensor, "*B"],
    *,
    clip_range: float,
    clip_range_high: float,
    dual_clip: float | None,
) -> Bool[Tensor, "*B"]:
    """True where the clipped surrogate has no gradient: the ratio left the range in the advantage's direction."""
    low, high = _log_ratio_bounds(advantages, clip_range, clip_range_high, dual_clip)
    return ((log_ratio < low) | (log_ratio > high)) & (advantages.abs() > 0)


def conservative_weights(
    advantages: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], *, mixture: float, temperature: float
) -> Float[Tensor, "*shape"]:
    """(1−α) + α w, with w = e^{Â/η} scaled to mean 1 over the mask; 0 outside it.

    Weights of −log π whose minimum is the mixture (1−α) π_old + α π′ with π′ ∝ π_old e^{Â/η}: the conservative update
    of Kakade and Langford 2002, "Approximately Optimal Approximate Reinforcement Learning", with a softened greedy
    policy that is normalized over the batch instead of in every state.

    Args:
        mixture: α from 0 to 1.
        temperature: η > 0, in units of the advantages; a small η favours only the best actions.
    """
    # e^{Â/η} may overflow; relative to its maximum it cannot, and the scale cancels below.
    largest = torch.where(mask, advantages, -math.inf).amax()
    weights = ((advantages - largest) / temperature).exp()
    weights = weights * mask.sum() / masked_sum(weights, mask)
    return masked(1 - mixture + mixture * weights, mask)


def unlikelihood_loss(logprobs: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """−log(1 − p) with p = e^{log p}, for actions to avoid; p is first multiplied by 1 − ε, ε the dtype's resolution.

    Welleck et al. 2020, "Neural Text Generation With Unlikelihood Training", § 5. The exact gradient p / (1 − p) is
    infinite at p = 1, which a confident softmax reaches by rounding. With the factor it stays below 1/ε and, unlike
    that of a clamp, never vanishes. Through the softmax, whose derivative contributes 1 − p, it is below 1.
    """
    logprobs = logprobs + math.log1p(-torch.finfo(logprobs.dtype).eps)
    # Each form is accurate where the other loses digits. The clamp keeps the second one finite where it is not chosen:
    # its gradient there would be 0 · ∞.
    half = -math.log(2)
    near_one = torch.log(-torch.expm1(logprobs))
    near_zero = torch.log1p(-torch.exp(logprobs.clamp(max=half)))
    return -torch.where(logprobs > half, near_one, near_zero)


def value_loss(
    values: Float[Tensor, "*B"],
    old_values: Float[Tensor, "*B"],
    returns: Float[Tensor, "*B"],
    *,
    value_clip_range: float | None,
) -> Float[Tensor, "*B"]:
    """½ (V − R)², or with a clip range the larger of it and ½ (clip(V, V_old ± ε) − R)².

    The clipped form is that of OpenAI Baselines' ppo2; Engstrom et al. 2020, "Implementation Matters", § 3.

    Args:
        value_clip_range: ε in reward units; None leaves the loss unclipped.
    """
    loss = 0.5 * (values - returns) ** 2
    if value_clip_range is None:
        return loss
    clipped = old_values + (values - old_values).clamp(-value_clip_range, value_clip_range)
    return torch.maximum(loss, 0.5 * (clipped - returns) ** 2)
