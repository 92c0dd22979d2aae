"""Losses of policy and critic, per action: the caller averages them and names the denominator.

The gradient is meant to flow through ``logprobs``, ``log_ratio``, ``kl`` and ``values``; the rest is data.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.ops.masking import masked_sum


def policy_gradient_loss(logprobs: Float[Tensor, "*B"], advantages: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """−Â log π(a), whose expected gradient is that of minus the return.

    Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning".
    """
    return -advantages * logprobs


def _log_ratio_bounds(
    advantages: Float[Tensor, "*B"], clip_range: float, clip_range_high: float, dual_clip: float | None
) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
    """Log ratios below and above which the clipped surrogate is flat: on the side that the advantage pulls to."""
    bad = advantages < 0
    lowest = math.log1p(-clip_range) if clip_range < 1 else -math.inf
    highest = math.inf if dual_clip is None else math.log(dual_clip)
    low = torch.full_like(advantages, -math.inf).masked_fill(bad, lowest)
    return low, torch.full_like(advantages, math.log1p(clip_range_high)).masked_fill(bad, highest)


def clipped_surrogate_loss(
    log_ratio: Float[Tensor, "*B"],
    advantages: Float[Tensor, "*B"],
    *,
    clip_range: float,
    clip_range_high: float,
    dual_clip: float | None,
) -> Float[Tensor, "*B"]:
    """−min(r Â, clip(r, 1−ε, 1+ε′) Â) with r = e^{log ratio}; where Â < 0 not above −c Â.

    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7, negated. Two ranges: Yu et al. 2025,
    "DAPO", eq. 10. Dual clip: Ye et al. 2020, "Mastering Complex Control in MOBA Games with Deep Reinforcement
    Learning".

    Args:
        log_ratio: log π(a) − log π_old(a).
        clip_range: ε, 0.1 to 0.3; from 1 on the ratio has no lower bound.
        clip_range_high: ε′, the same as ε in PPO; infinite for no upper bound.
        dual_clip: c > 1, such as 3, bounds the ratio of bad actions from above; None leaves it unbounded.
    """
    # The minimum binds only on the side that the advantage pulls to. Clipping the logarithm there gives the same
    # number, and a gradient of 0 instead of 0 · ∞ where the ratio itself would overflow.
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


def penalized_surrogate_loss(
    log_ratio: Float[Tensor, "*B"], advantages: Float[Tensor, "*B"], kl: Float[Tensor, "*B"], *, kl_coef: float
) -> Float[Tensor, "*B"]:
    """−(r Â − β KL) with r = e^{log ratio}.

    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 8, negated.

    Args:
        log_ratio: log π(a) − log π_old(a).
        kl: KL(π_old‖π) at each action, in nats; its gradient must be that of the KL (see ``ops.kl`` on estimates).
        kl_coef: β ≥ 0.
    """
    return kl_coef * kl - log_ratio.exp() * advantages


def conservative_weights(
    advantages: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], *, mixture: float, temperature: float
) -> Float[Tensor, "*shape"]:
    """(1−α) + α w, with w = e^{Â/η} scaled to mean 1 over the entries that count; 0 elsewhere.

    Weights of −log π whose minimum is the mixture (1−α) π_old + α π′ with π′ ∝ π_old e^{Â/η}: the conservative update
    of Kakade and Langford 2002, "Approximately Optimal Approximate Reinforcement Learning", with a softened greedy
    policy that is normalized over the batch instead of in every state.

    Args:
        mixture: α from 0 to 1.
        temperature: η > 0, in units of the advantages; small ones favour only the best actions.
    """
    # e^{Â/η} may overflow; against the largest one it cannot, and the scale cancels.
    largest = torch.where(mask, advantages, -math.inf).amax()
    weights = ((advantages - largest) / temperature).exp()
    weights = weights * mask.sum() / masked_sum(weights, mask)
    return torch.where(mask, 1 - mixture + mixture * weights, torch.zeros_like(weights))


def unlikelihood_loss(logprobs: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """−log(1 − p) with p = e^{log p}, for actions to avoid; p is first scaled by 1 − ε, ε the dtype's resolution.

    Welleck et al. 2020, "Neural Text Generation With Unlikelihood Training", § 5. The true gradient p / (1 − p) is
    infinite at p = 1, where a confident softmax arrives by rounding. The scaled one grows to 1/ε and no further, and
    unlike a clamp never vanishes; behind the softmax, whose own derivative has the factor 1 − p, less than 1 is left.
    """
    logprobs = logprobs + math.log1p(-torch.finfo(logprobs.dtype).eps)
    # Each form loses its digits where the other keeps them. The bound keeps the second finite where it is not chosen:
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
