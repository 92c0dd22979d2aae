"""Returns and advantages over [B, T], one backward pass over T."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.ops.masking import masked


def discounted_returns(
    rewards: Float[Tensor, "B T"], continues: Bool[Tensor, "B T"], *, gamma: float
) -> Float[Tensor, "B T"]:
    """Rewards to go: Rₜ = rₜ + γ cₜ Rₜ₊₁.

    Args:
        continues: c, False at an episode's last action.
    """
    returns = torch.zeros_like(rewards)
    running = rewards.new_zeros(rewards.shape[0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        running = rewards[:, t] + gamma * masked(running, continues[:, t])
        returns[:, t] = running
    return returns


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    next_values: Float[Tensor, "B T"],
    continues: Bool[Tensor, "B T"],
    *,
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Advantages and returns by generalized advantage estimation.

    δₜ = rₜ + γ V′ₜ − Vₜ,   Âₜ = δₜ + γλ cₜ Âₜ₊₁,   returns Âₜ + Vₜ.
    Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", eq. 16.

    Args:
        next_values: V′, value after the action; 0 where the episode terminated, V of the final observation where it
            was truncated.
        continues: c, False at an episode's last action.
        gamma: γ, 1 for language, 0.99 for control.
        lam: λ; 0 gives one-step TD, 1 gives Monte Carlo.
    """
    deltas = rewards + gamma * next_values - values
    advantages = discounted_returns(deltas, continues, gamma=gamma * lam)
    return advantages, advantages + values


def following_values(values: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Value after each token of a response: the value before the next token, and 0 after the last one.

    A response that was cut at the length limit is treated as ended: nothing is bootstrapped.
    """
    continues = torch.nn.functional.pad(action_mask[:, 1:], (0, 1), value=False)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1), value=0.0)
    return masked(following, continues)


def episode_totals(returns: Float[Tensor, "B T"], continues: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """The return from the start of the episode that each action belongs to.

    Args:
        returns: rewards to go.
        continues: c, False at an episode's last action.
    """
    totals = [returns[:, 0]]
    for t in range(1, returns.shape[1]):
        totals.append(torch.where(continues[:, t - 1], totals[-1], returns[:, t]))
    return torch.stack(totals, dim=1)
