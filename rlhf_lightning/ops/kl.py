"""Estimators of KL(π‖q) from actions drawn from π, and the rule that adapts a KL coefficient.

With Δ = log π(a) − log q(a): k1 is unbiased with large variance, k2 is biased with small variance, k3 is unbiased,
never negative and has small variance (Schulman 2020, "Approximating KL Divergence"). These estimate the *value*;
the gradient of k1 is 0 in expectation and that of k3 is not the gradient of the KL.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def k1(logprobs: Float[Tensor, "*B"], other_logprobs: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Δ."""
    return logprobs - other_logprobs


def k2(logprobs: Float[Tensor, "*B"], other_logprobs: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Δ² / 2."""
    return 0.5 * (logprobs - other_logprobs) ** 2


def k3(logprobs: Float[Tensor, "*B"], other_logprobs: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """e^{−Δ} − 1 + Δ."""
    delta = logprobs - other_logprobs
    return torch.expm1(-delta) + delta


def ziegler_coefficient(kl_coef: float, kl: float, *, target: float, gain: float) -> float:
    """The next KL coefficient: β ← β (1 + K · clip(KL/target − 1, ±0.2)).

    Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", § 2.2.

    Args:
        kl: measured KL to the reference, in nats per sequence.
        target: wanted KL, in nats per sequence.
        gain: K; the paper's 0.1 moves β by at most 2 % an update.
    """
    return kl_coef * (1 + gain * min(max(kl / target - 1, -0.2), 0.2))
