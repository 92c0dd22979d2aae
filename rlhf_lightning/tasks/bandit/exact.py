"""Exact expectations in the enumerable task: sums over all 15 responses, where training has samples.

They hold for any policy over the three tokens, in its own precision. Responses are cut after three tokens, as with
``max_new_tokens: 3``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.models.policy import Policy, TextPolicy
from rlhf_lightning.models.tabular import OPEN, prefixes_before
from rlhf_lightning.ops.advantages import discounted_returns
from rlhf_lightning.ops.kl import k1
from rlhf_lightning.ops.rewards import kl_shaped_rewards, last_action_rewards
from rlhf_lightning.ops.trust_region import flatten
from rlhf_lightning.tasks.bandit.tree import as_rollout


def flat_gradient(value: Float[Tensor, ""], policy: Policy) -> Float[Tensor, " P"]:
    """Gradient of a number with respect to the trained parameters of the policy, as a vector; the graph is kept."""
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return flatten(torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True))


def action_logprobs(policy: TextPolicy) -> Float[Tensor, "15 3"]:
    """Log-probability of each action of each response, 0 after its end; differentiable."""
    rollout = as_rollout(policy)
    return policy.evaluate(rollout.context, rollout.actions, rollout.action_mask).logprobs


def log_probabilities(policy: TextPolicy) -> Float[Tensor, " 15"]:
    """The logarithm of p(τ) for each response; differentiable."""
    return action_logprobs(policy).sum(-1)


def probabilities(policy: TextPolicy) -> Float[Tensor, " 15"]:
    """The probability p(τ) of each response; differentiable."""
    return log_probabilities(policy).exp()


@dataclass(frozen=True, eq=False)
class Objective:
    """J(π) = E_τ[R(τ) − β log (π(τ) / π_ref(τ))], the expected score minus the penalty on the KL to the reference.

    Args:
        scores: R of each response.
        reference: π_ref; None for no penalty.
        kl_coef: β, in reward units per nat.
    """

    scores: Float[Tensor, " 15"]
    reference: TextPolicy | None = None
    kl_coef: float = 0.0

    def value(self, policy: TextPolicy) -> Float[Tensor, ""]:
        """J, differentiable."""
        logprobs = log_probabilities(policy)
        rewards = self.scores
        if self.reference is not None:
            rewards = rewards - self.kl_coef * (logprobs - log_probabilities(self.reference).detach())
        return (logprobs.exp() * rewards).sum()

    def gradient(self, policy: TextPolicy) -> Float[Tensor, " P"]:
        """∇J."""
        return flat_gradient(self.value(policy), policy)

    # -- what an algorithm is given ----------------------------------------------------------------------------

    def rewards(self, policy: TextPolicy) -> Float[Tensor, "15 3"]:
        """Reward of each action: −β log (π / π_ref) of the action, and R at the last one; not differentiable."""
        rollout = as_rollout(policy)
        rewards = last_action_rewards(self.scores, rollout.action_mask)
        if self.reference is None:
            return rewards
        kl = k1(rollout.old_logprobs, as_rollout(self.reference).old_logprobs)
        return kl_shaped_rewards(rewards, kl, rollout.action_mask, kl_coef=self.kl_coef)

    def returns(self, policy: TextPolicy, *, gamma: float) -> Float[Tensor, "15 3"]:
        """Reward to go of each action: Gₜ = Σ_{k ≥ t} γᵏ⁻ᵗ rₖ."""
        return discounted_returns(self.rewards(policy), as_rollout(policy).continues, gamma=gamma)

    def values(self, policy: TextPolicy, *, gamma: float) -> Float[Tensor, " 15"]:
        """V of each prefix, the expected reward to go; that of a complete response is its score."""
        rollout = as_rollout(policy)
        mask = rollout.action_mask
        prefixes = prefixes_before(rollout.actions, mask)[mask]
        weights = probabilities(policy).detach()[:, None].expand(mask.shape)
        returns = self.returns(policy, gamma=gamma)
        weighted, total = (
            torch.zeros_like(weights[:, 0]).index_add(0, prefixes, summands[mask])
            for summands in (weights * returns, weights)
        )
        return torch.cat([weighted[:OPEN] / total[:OPEN], self.scores[OPEN:]])
