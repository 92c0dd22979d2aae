"""From a score per response to a reward per token, minus the KL penalty."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.ops.masking import masked


def last_action_rewards(scores: Float[Tensor, " B"], action_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Each row's score at its last action, 0 elsewhere; a row without actions is 0 everywhere."""
    action_follows = torch.nn.functional.pad(action_mask[:, 1:], (0, 1), value=False)
    return masked(scores[:, None].expand_as(action_mask), action_mask & ~action_follows)


def kl_shaped_rewards(
    rewards: Float[Tensor, "B T"],
    kl: Float[Tensor, "B T"],
    action_mask: Bool[Tensor, "B T"],
    *,
    kl_coef: float,
) -> Float[Tensor, "B T"]:
    """rₜ − β KLₜ at every action; 0 where the mask is False.

    Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", eq. 2, per token.

    Args:
        rewards: r, from the task.
        kl: an estimate of KL(π‖π_ref) at each action, in nats.
        kl_coef: β, in reward units per nat.
    """
    return masked(rewards - kl_coef * kl, action_mask)
