"""Several objectives O at once: the rewards of each objective, and one advantage combined from all of them."""

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
    """The rewards of each objective: its score at the last action, and an equal share of the remaining reward.

    rᵒₜ = sᵒₜ + (rₜ − Σ wᵒ sᵒₜ) / Σ wᵒ, so that Σ wᵒ rᵒₜ = rₜ; 0 where the mask is False.

    Args:
        rewards: r, the total reward: the weighted sum of the scores minus penalties and the KL penalty.
        scores: s, one column for each objective.
        weights: w; their sum must be positive.
    """
    score_rewards = torch.stack([last_action_rewards(score, action_mask) for score in scores.unbind(-1)], dim=-1)
    remainder = (rewards - (score_rewards * weights).sum(-1)) / weights.sum()
    return torch.where(action_mask[..., None], score_rewards + remainder[..., None], 0)


def weighted_advantages(
    advantages: Float[Tensor, "B T O"],
    weights: Float[Tensor, " O"],
    action_mask: Bool[Tensor, "B T"],
    *,
    eps: float,
) -> Float[Tensor, "B T"]:
    """Σ wᵒ (Âᵒ − mean) / standard deviation, both over the mask; 0 outside it.

    Each objective has an influence proportional to its weight, whatever the scale of its scores. One value function
    for each objective: Xu et al. 2020, "Prediction-Guided Multi-Objective Reinforcement Learning for Continuous Robot
    Control", which weights the advantages without normalizing them.

    Args:
        weights: w; only their ratios matter if the result is normalized again.
        eps: added to the standard deviation, so that an objective whose advantages are all equal contributes 0.
    """
    normalized = torch.stack([whiten(advantage, action_mask, eps=eps) for advantage in advantages.unbind(-1)], dim=-1)
    return (normalized * weights).sum(-1)
