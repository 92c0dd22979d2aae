"""Further exact answers to the enumerable task: Fisher matrices, gradients of estimators, and the optimum."""

import torch

from rlhf_lightning.models.tabular import OPEN, TabularCritic, TabularPolicy
from rlhf_lightning.tasks.bandit.exact import action_logprobs, flat_gradient, log_probabilities, probabilities
from rlhf_lightning.tasks.bandit.tree import as_rollout


def mean_length(policy):
    """Expected number of actions of a response; differentiable."""
    return (probabilities(policy) * as_rollout(policy).lengths()).sum()


def trajectory_fisher(policy):
    """F = E_τ[Σₜ gₜ gₜᵀ], gₜ = ∇ log π(aₜ|sₜ): the Fisher matrix of the distribution of responses.

    It is the Hessian of E_τ[Σₜ KL(π_θ‖π_θ′)(sₜ)] in θ′ at θ′ = θ, a KL per response.
    """
    mask = as_rollout(policy).action_mask
    weights = probabilities(policy).detach()[:, None].expand(mask.shape)[mask]
    gradients = torch.stack([flat_gradient(logprob, policy) for logprob in action_logprobs(policy)[mask]])
    return gradients.T @ (weights[:, None] * gradients)


def action_fisher(policy):
    """The same per action: `trajectory_fisher` / `mean_length`, which goes with a KL in nats per action."""
    return trajectory_fisher(policy) / mean_length(policy).detach()


def reward_to_go_gradient(objective, policy, *, gamma):
    """E_τ[Σₜ ∇ log π(aₜ|sₜ) Gₜ], which policy-gradient algorithms follow.

    At γ = 1 it is ∇J. At γ < 1, without a factor γᵗ in front of Gₜ, it is in general the gradient of no function
    (Nota and Thomas 2020, "Is the Policy Gradient a Gradient?").
    """
    weights = probabilities(policy).detach()[:, None] * objective.returns(policy, gamma=gamma)
    return flat_gradient((weights * action_logprobs(policy)).sum(), policy)


def exact_critic(objective, policy, *, gamma):
    """The critic that knows the values of the policy."""
    return TabularCritic(objective.values(policy, gamma=gamma))


def log_partition(objective):
    """The logarithm of Z = Σ_τ π_ref(τ) e^{R(τ)/β}: the largest J is β log Z."""
    return _tilted(objective).logsumexp(-1)


def exact_optimum(objective):
    """The distribution π_ref(τ) e^{R(τ)/β} / Z, which maximizes J."""
    return _tilted(objective).softmax(-1)


def _tilted(objective):
    if objective.reference is None or not objective.kl_coef > 0:
        raise ValueError("without a reference and a coefficient above 0 the maximum is the best response alone")
    return log_probabilities(objective.reference).detach() + objective.scores / objective.kl_coef


def table_of(distribution, *, like):
    """The policy that has a given distribution of responses.

    Args:
        distribution: p(τ) > 0 of each response.
        like: another policy, with the same tokenizer and temperature.
    """
    mass = list(distribution.unbind())
    for prefix in reversed(range(OPEN)):  # of all responses that begin so
        mass[prefix] = mass[prefix] + mass[2 * prefix + 1] + mass[2 * prefix + 2]
    rows = [torch.stack([distribution[n], mass[2 * n + 1], mass[2 * n + 2]]) / mass[n] for n in range(OPEN)]
    logits = torch.stack(rows).log() * like.temperature
    return TabularPolicy(like.tokenizer, logits.to(like.logits), temperature=like.temperature)
