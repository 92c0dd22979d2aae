"""Estimators of KL(π‖q) from actions drawn from π, and the rules that adapt a KL coefficient.

With Δ = log π(a) − log q(a): k1 is unbiased with large variance, k2 is biased with small variance, k3 is unbiased,
never negative and has small variance (Schulman 2020, "Approximating KL Divergence"). That is about the *value*. As a
term of a loss, an estimator is differentiated at the sampled actions; its expected gradient is 0 for k1, ∇KL(π‖q)
for k2 and ∇KL(q‖π) for k3. Times the probability ratio, k3 has the gradient ∇KL(π‖q), too.
"""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Direction: TypeAlias = Literal["reverse", "forward"]
"""Direction of the KL between a policy π and another policy q: reverse is KL(π‖q), forward is KL(q‖π)."""

SMALLEST_COEFFICIENT, LARGEST_COEFFICIENT = 1e-8, 1e8
"""Bounds of an adapted KL coefficient: the rules multiply, so a coefficient of 0 or infinity would stay there."""


def k1(logprobs: Float[Tensor, "*B"], other_logprobs: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """k1 = Δ."""
    return logprobs - other_logprobs


def k2(logprobs: Float[Tensor, "*B"], other_logprobs: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """k2 = Δ² / 2."""
    return 0.5 * (logprobs - other_logprobs) ** 2


def k3(logprobs: Float[Tensor, "*B"], other_logprobs: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """k3 = e^{−Δ} − 1 + Δ."""
    delta = logprobs - other_logprobs
    return torch.expm1(-delta) + delta


def k3_ratio(
    logprobs: Float[Tensor, "*B"], other_logprobs: Float[Tensor, "*B"], old_logprobs: Float[Tensor, "*B"]
) -> Float[Tensor, "*B"]:
    """(π/π_old) k3, which has the expectation KL(π‖q) and the expected gradient ∇KL(π‖q) at actions of π_old.

    DeepSeek-AI 2025, "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models", § 3.1. The derivative is
    (π/π_old) Δ ∇ log π: the ratio adds k3 to k3's own factor 1 − e^{−Δ}. At π = π_old it is that of k2.
    """
    return (logprobs - old_logprobs).exp() * k3(logprobs, other_logprobs)


def ziegler_coefficient(kl_coef: float, kl: float, *, target: float, gain: float) -> float:
    """The next KL coefficient: β ← β (1 + K · clip(KL/target − 1, ±0.2)).

    Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", § 2.2.

    Args:
        kl: measured KL to the reference, in nats per sequence.
        target: wanted KL, in nats per sequence.
        gain: K; the paper's 0.1 moves β by at most 2 % an update.
    """
    return _bounded(kl_coef * (1 + gain * min(max(kl / target - 1, -0.2), 0.2)))


def halve_double_coefficient(kl_coef: float, kl: float, *, target: float) -> float:
    """The next KL coefficient: β / 2 where KL < target / 1.5, 2 β where KL > 1.5 × target.

    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", § 4.

    Args:
        kl: measured KL, in the same unit as the target.
        target: wanted KL.
    """
    factor = 0.5 if kl < target / 1.5 else 2.0 if kl > target * 1.5 else 1.0
    return _bounded(kl_coef * factor)


def threshold_coefficient(kl_coef: float, kl: float, *, target: float) -> float:
    """The next KL coefficient: 1.5 β where KL > 2 × target, β / 2 where KL < target / 2.

    Args:
        kl: measured KL, in the same unit as the target.
        target: wanted KL.
    """
    factor = 0.5 if kl < target / 2 else 1.5 if kl > target * 2 else 1.0
    return _bounded(kl_coef * factor)


def _bounded(kl_coef: float) -> float:
    return min(max(kl_coef, SMALLEST_COEFFICIENT), LARGEST_COEFFICIENT)
