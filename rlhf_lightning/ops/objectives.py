"""Several objectives O at once: the rewards of each, and one advantage out of those of all."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.ops.masking import whiten
from rlhf_lightning.ops.rewards import last_action_rewards


def objective_rewards(
    rewards: Float[Tensor, "B T"],
    scores: Float[Tensor, "B O"],
    weights: Float[Tensor, " O"],
    action_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T O"]:
    """The rewards of each objective: its score at the last action, and an equal share of what else was paid.

    rᵒₜ = sᵒₜ + (rₜ − Σ wᵒ sᵒₜ) / Σ wᵒ, so that Σ wᵒ rᵒₜ = rₜ; 0 where the mask is False.

    Args:
        rewards: r, everything that is paid: the weighted sum of the scores less penalties and the price of the KL.
        scores: s, by objective.
        weights: w, whose sum must be above 0.
    """
    own = torch.stack([last_action_rewards(column, action_mask) for column in scores.unbind(-1)], dim=-1)
    rest = (rewards - (own * weights).sum(-1)) / weights.sum()
    return torch.where(action_mask[..., None], own + rest[..., None], torch.zeros_like(own))


def weighted_advantages(
    advantages: Float[Tensor, "B T O"],
    weights: Float[Tensor, " O"],
    action_mask: Bool[Tensor, "B T"],
    *,
    eps: float,
) -> Float[Tensor, "B T"]:
    """Σ wᵒ (Âᵒ − mean) / standard deviation, both over the actions that count; 0 elsewhere.

    However far an objective's scores are spread, it pulls as hard as its weight says. One value function for each
    objective: Xu et al. 2020, "Prediction-Guided Multi-Objective Reinforcement Learning for Continuous Robot Control",
    where advantages are weighed as they are.

    Args:
        weights: w; what counts is their ratios, where the result is scaled again.
        eps: added to the standard deviation, so that an objective whose advantages are all equal adds 0.
    """
    normalized = torch.stack([whiten(column, action_mask, eps=eps) for column in advantages.unbind(-1)], dim=-1)
    return (normalized * weights).sum(-1)
