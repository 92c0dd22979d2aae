"""From a score per response to a reward per token, less the price of the KL."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def last_action_rewards(scores: Float[Tensor, " B"], action_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Each row's score at its last action, 0 elsewhere; a row without actions gets none."""
    after = torch.nn.functional.pad(action_mask[:, 1:], (0, 1), value=False)
    return torch.where(action_mask & ~after, scores[:, None], torch.zeros((), dtype=scores.dtype, device=scores.device))


def kl_shaped_rewards(
    rewards: Float[Tensor, "B T"],
    kl: Float[Tensor, "B T"],
    action_mask: Bool[Tensor, "B T"],
    *,
    kl_coef: float,
) -> Float[Tensor, "B T"]:
    """rₜ − β KLₜ at every action; 0 where the mask is False.

    Ziegler et al. 2019, eq. 2, written per token.

    Args:
        rewards: r, from the task.
        kl: an estimate of KL(π‖π_ref) at each action, in nats.
        kl_coef: β, in reward units per nat.
    """
    return torch.where(action_mask, rewards - kl_coef * kl, torch.zeros_like(rewards))
