"""With a discount: rewards to go without γᵗ before them, and the few estimators of something else."""

from functools import partial

import pytest
import torch
from bandit_oracles import reward_to_go_gradient
from placed import placed
from tree_oracle import Tree

from rlhf_lightning.algorithms.a2c import A2C
from rlhf_lightning.algorithms.npg import NPG
from rlhf_lightning.algorithms.parts.baselines import BatchMean, MovingAverage, NoBaseline, ValueBaseline
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.models.tabular import TabularPolicy
from rlhf_lightning.proofs.expectation import expected_gradient
from rlhf_lightning.proofs.instance import Instance
from rlhf_lightning.tasks.bandit.exact import probabilities

GAMMA = 0.6
INSTANCES = [Instance(seed=0), Instance(seed=1, kl_coef=0.8)]
TREES = [Tree(at, gamma=GAMMA) for at in INSTANCES]
CASES = pytest.mark.parametrize(("at", "tree"), list(zip(INSTANCES, TREES, strict=True)), ids=["0", "1"])


FOLLOW_REWARDS_TO_GO = {
    "reinforce": partial(REINFORCE, baseline=NoBaseline()),
    "reinforce-average": partial(REINFORCE, baseline=MovingAverage.after(0.7)),
    "reinforce-values": partial(REINFORCE, baseline=ValueBaseline()),
    "a2c-0": partial(A2C, lam=0.0),
    "a2c-0.5": partial(A2C, lam=0.5),
    "ppo": partial(PPO, whiten_advantages=False),
    "npg": NPG,
}
ANY_VALUES = {
    "reinforce-values": partial(REINFORCE, baseline=ValueBaseline()),
    "a2c-1": partial(A2C, lam=1.0),
    "ppo-1": partial(PPO, lam=1.0, whiten_advantages=False),
}


def gradient(at, build, *, wrong_critic=False, size=1):
    module = placed(at, build, gamma=GAMMA, wrong_critic=wrong_critic)
    return -expected_gradient(module, at.scores, batch_size=size).mean


def close(found, expected, atol=1e-11):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    assert expected.norm() > 0.02


def discounted_objective(at, logits):
    """E[Σₜ γᵗ rₜ] of a policy, KL included."""
    policy = TabularPolicy(at.policy.tokenizer, logits)
    return (probabilities(policy) * at.objective.returns(policy, gamma=GAMMA)[:, 0]).sum().item()


def discounted_gradient(at, step=1e-5):
    """Its gradient, by finite differences."""
    logits, slopes = at.policy.logits.detach(), []
    for place in range(logits.numel()):
        shift = torch.zeros(logits.numel(), dtype=torch.float64)
        shift[place] = step
        up, down = (discounted_objective(at, logits + sign * shift.view_as(logits)) for sign in (1, -1))
        slopes.append((up - down) / (2 * step))
    return torch.tensor(slopes, dtype=torch.float64)


@CASES
@pytest.mark.parametrize("build", FOLLOW_REWARDS_TO_GO.values(), ids=FOLLOW_REWARDS_TO_GO)
def test_discounted_expectation_is_that_of_rewards_to_go(at, tree, build):
    expected = reward_to_go_gradient(at.objective, at.policy, gamma=GAMMA)
    close(expected, tree.expected(tree.to_go))
    close(gradient(at, build), expected)
    assert (expected - at.objective.gradient(at.policy)).norm() > 0.05


@CASES
@pytest.mark.parametrize("build", ANY_VALUES.values(), ids=ANY_VALUES)
def test_discounted_expectation_with_wrong_values_at_lambda_1(at, tree, build):
    close(gradient(at, build, wrong_critic=True), tree.expected(tree.to_go))


@CASES
@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_discounted_bias_of_wrong_values_is_how_they_err_later(at, tree, lam):
    """E[g] − E[Σ ∇ log π G] = E[Σₜ ∇ log πₜ Σ_{k≥t} (γλ)^{k−t} (γ eₖ₊₁ − eₖ)], e the errors, 0 behind the end."""

    def errors(i):
        e = [wrong - right for wrong, right in zip(tree.values(i, wrong=True), tree.values(i), strict=True)] + [0.0]
        deltas = [GAMMA * e[k + 1] - e[k] for k in range(tree.length(i))]
        return [sum((GAMMA * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]

    bias = gradient(at, partial(A2C, lam=lam), wrong_critic=True) - tree.expected(tree.to_go)
    close(bias, tree.expected(errors))


@CASES
def test_discounted_whole_return_follows_the_discounted_objective(at, tree):
    found = gradient(at, partial(REINFORCE, baseline=NoBaseline(), reward_to_go=False))
    close(found, tree.expected(lambda i: [tree.total(i)] * tree.length(i)))
    close(found, discounted_gradient(at), atol=1e-8)
    assert (found - tree.expected(tree.to_go)).norm() > 0.02  # γᵗ before later actions makes a difference


@CASES
@pytest.mark.parametrize("size", [1, 2])
def test_discounted_batch_mean_subtracts_a_share_of_the_discounted_gradient(at, tree, size):
    """Of the mean over B returns one is the response's own: E[g] = E[Σ ∇ log π G] − (1/B) ∇E[Σ γᵗ rₜ]."""
    whole = tree.expected(lambda i: [tree.total(i)] * tree.length(i))
    close(gradient(at, partial(REINFORCE, baseline=BatchMean()), size=size), tree.expected(tree.to_go) - whole / size)
