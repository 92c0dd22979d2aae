"""From a score per response to a reward per token."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def kl_shaped_rewards(
    scores: Float[Tensor, " B"],
    kl: Float[Tensor, "B T"],
    action_mask: Bool[Tensor, "B T"],
    *,
    kl_coef: float,
) -> Float[Tensor, "B T"]:
    """rₜ = −β KLₜ at every action, plus the score at the last one; 0 where the mask is False.

    Ziegler et al. 2019, eq. 2, written per token. A row without actions gets no score.

    Args:
        kl: an estimate of KL(π‖π_ref) at each action, in nats.
        kl_coef: β, in reward units per nat.
    """
    after = torch.nn.functional.pad(action_mask[:, 1:], (0, 1), value=False)
    is_last = action_mask & ~after
    penalty = torch.where(action_mask, -kl_coef * kl, torch.zeros_like(kl))
    return penalty + torch.where(is_last, scores[:, None], torch.zeros_like(kl))
