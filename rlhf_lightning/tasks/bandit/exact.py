"""Exact answers to the enumerable task: sums over all 15 responses where training has samples.

They hold for any policy over the three tokens, in the precision that it is in; only what returns a table needs one.
Responses are cut after three tokens, as by ``max_new_tokens: 3``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.models.policy import TextPolicy
from rlhf_lightning.models.tabular import OPEN, TabularCritic, TabularPolicy, prefixes_before
from rlhf_lightning.ops.advantages import discounted_returns
from rlhf_lightning.ops.kl import k1
from rlhf_lightning.ops.rewards import kl_shaped_rewards, last_action_rewards
from rlhf_lightning.ops.trust_region import flatten
from rlhf_lightning.tasks.bandit.tree import as_rollout


def flat_gradient(value: Float[Tensor, ""], policy: TextPolicy) -> Float[Tensor, " P"]:
    """Gradient of a number with respect to the policy's trained parameters, as one vector; the graph is kept."""
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return flatten(torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True))


def action_logprobs(policy: TextPolicy) -> Float[Tensor, "15 3"]:
    """Log-probability of each action of each response, 0 behind its end; differentiable."""
    every = as_rollout(policy)
    return policy.evaluate(every.context, every.actions, every.action_mask).logprobs


def log_probabilities(policy: TextPolicy) -> Float[Tensor, " 15"]:
    """Logarithm of p(τ) of each response; differentiable."""
    return action_logprobs(policy).sum(-1)


def probabilities(policy: TextPolicy) -> Float[Tensor, " 15"]:
    """p(τ) of each response; differentiable."""
    return log_probabilities(policy).exp()


def mean_length(policy: TextPolicy) -> Float[Tensor, ""]:
    """Expected number of actions of a response; differentiable."""
    return (probabilities(policy) * as_rollout(policy).lengths()).sum()


def trajectory_fisher(policy: TextPolicy) -> Float[Tensor, "P P"]:
    """F = E_τ[Σₜ gₜ gₜᵀ], gₜ = ∇ log π(aₜ|sₜ): the Fisher matrix of the distribution of responses.

    It is the Hessian of E_τ[Σₜ KL(π_θ‖π_θ′)(sₜ)] in θ′ at θ′ = θ, a KL per response.
    """
    mask = as_rollout(policy).action_mask
    weights = probabilities(policy).detach()[:, None].expand(mask.shape)[mask]
    gradients = torch.stack([flat_gradient(logprob, policy) for logprob in action_logprobs(policy)[mask]])
    return gradients.T @ (weights[:, None] * gradients)


def action_fisher(policy: TextPolicy) -> Float[Tensor, "P P"]:
    """The same per action: `trajectory_fisher` / `mean_length`, which goes with a KL in nats per action."""
    return trajectory_fisher(policy) / mean_length(policy).detach()


@dataclass(frozen=True, eq=False)
class Objective:
    """J(π) = E_τ[R(τ) − β log (π(τ) / π_ref(τ))], the expected score less the price of the KL to the reference.

    Args:
        scores: R of each response.
        reference: π_ref; None where leaving it costs nothing.
        kl_coef: β, in reward units per nat.
    """

    scores: Float[Tensor, " 15"]
    reference: TextPolicy | None = None
    kl_coef: float = 0.0

    def value(self, policy: TextPolicy) -> Float[Tensor, ""]:
        """J, differentiable."""
        logprobs = log_probabilities(policy)
        worth = self.scores
        if self.reference is not None:
            worth = worth - self.kl_coef * (logprobs - log_probabilities(self.reference).detach())
        return (logprobs.exp() * worth).sum()

    def gradient(self, policy: TextPolicy) -> Float[Tensor, " P"]:
        """∇J."""
        return flat_gradient(self.value(policy), policy)

    # -- what an algorithm sees of it --------------------------------------------------------------------------

    def rewards(self, policy: TextPolicy) -> Float[Tensor, "15 3"]:
        """Reward of each action: −β log (π / π_ref) of the action, and R at the last one; not differentiable."""
        every = as_rollout(policy)
        rewards = last_action_rewards(self.scores, every.action_mask)
        if self.reference is None:
            return rewards
        kl = k1(every.old_logprobs, as_rollout(self.reference).old_logprobs)
        return kl_shaped_rewards(rewards, kl, every.action_mask, kl_coef=self.kl_coef)

    def returns(self, policy: TextPolicy, *, gamma: float) -> Float[Tensor, "15 3"]:
        """Reward to go of each action: Gₜ = Σ_{k ≥ t} γᵏ⁻ᵗ rₖ."""
        return discounted_returns(self.rewards(policy), as_rollout(policy).continues, gamma=gamma)

    def reward_to_go_gradient(self, policy: TextPolicy, *, gamma: float) -> Float[Tensor, " P"]:
        """E_τ[Σₜ ∇ log π(aₜ|sₜ) Gₜ], what policy-gradient algorithms follow.

        At γ = 1 it is ∇J. At γ < 1, without a factor γᵗ in front of Gₜ, it is in general the gradient of no function
        (Nota and Thomas 2020, "Is the Policy Gradient a Gradient?").
        """
        weights = probabilities(policy).detach()[:, None] * self.returns(policy, gamma=gamma)
        return flat_gradient((weights * action_logprobs(policy)).sum(), policy)

    def values(self, policy: TextPolicy, *, gamma: float) -> Float[Tensor, " 15"]:
        """V of each prefix: the expected reward to go; that of a full one is its score."""
        every = as_rollout(policy)
        mask = every.action_mask
        prefixes = prefixes_before(every.actions, mask)[mask]
        weights = probabilities(policy).detach()[:, None].expand(mask.shape)
        returns = self.returns(policy, gamma=gamma)
        weighted, total = (
            torch.zeros_like(weights[:, 0]).index_add(0, prefixes, summands[mask])
            for summands in (weights * returns, weights)
        )
        return torch.cat([weighted[:OPEN] / total[:OPEN], self.scores[OPEN:]])

    def critic(self, policy: TextPolicy, *, gamma: float) -> TabularCritic:
        """The critic that knows the values of the policy."""
        return TabularCritic(self.values(policy, gamma=gamma))

    # -- its maximum -------------------------------------------------------------------------------------------

    def log_partition(self) -> Float[Tensor, ""]:
        """The logarithm of Z = Σ_τ π_ref(τ) e^{R(τ)/β}: the largest J is β log Z."""
        return self._tilted().logsumexp(-1)

    def optimum(self) -> Float[Tensor, " 15"]:
        """The distribution π_ref(τ) e^{R(τ)/β} / Z, which maximizes J."""
        return self._tilted().softmax(-1)

    def _tilted(self) -> Float[Tensor, " 15"]:
        if self.reference is None or not self.kl_coef > 0:
            raise ValueError("without a reference and a coefficient above 0 the maximum is the best response alone")
        return log_probabilities(self.reference).detach() + self.scores / self.kl_coef


def table_of(distribution: Float[Tensor, " 15"], *, like: TabularPolicy) -> TabularPolicy:
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
