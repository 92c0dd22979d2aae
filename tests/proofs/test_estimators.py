"""Each estimator of the table: mean and variance over all batches, against weights written out as loops."""

import inspect
from functools import cache, partial
from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch
from estimator_weights import JOINT, SINGLE, each
from placed import placed
from tree_oracle import Tree

from rlhf_lightning import algorithms
from rlhf_lightning.algorithms.base.feedback import FeedbackAlgorithm
from rlhf_lightning.algorithms.base.on_policy import OnPolicy
from rlhf_lightning.algorithms.parts.baselines import MovingAverage
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.proofs.estimators import all_estimators
from rlhf_lightning.proofs.expectation import batch_gradient, expected_gradient, scored_batch
from rlhf_lightning.proofs.instance import Instance
from rlhf_lightning.tasks.bandit.tree import as_rollout

BY_NAME = {one.variant.name: one for one in all_estimators() if issubclass(one.algorithm, OnPolicy)}
SEEDS = (0, 1)

UNBIASED = {
    "REINFORCE, whole return",
    "REINFORCE, reward to go",
    "REINFORCE, moving average (1.0 so far)",
    "REINFORCE, exact values",
    "REINFORCE, wrong values",
    "A2C, λ = 0, exact values",
    "A2C, λ = 1, wrong values",
    "PPO, λ = 0.95, exact values",
    "PPO, penalty",
    "PPO, ratio of responses",
    "NPG, before F⁻¹",
    "RLOO",
}
SHORT = {"REINFORCE, batch mean", "GRPO, no std, response sum"}
"""By a factor that the size of the batch decides."""


@cache
def instance(seed):
    return Instance(seed=seed)


@cache
def tree(seed):
    return Tree(instance(seed))


@cache
def moments(name, seed, size):
    """Of the gradient, uphill, of the algorithm itself."""
    at = instance(seed)
    found = expected_gradient(BY_NAME[name].module(at), at.scores, batch_size=size)
    return -found.mean, found.variance


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def check(name, seed, size, weights):
    mean, variance = tree(seed).moments(tree(seed).of_weights(weights), size)
    found_mean, found_variance = moments(name, seed, size)
    close(found_mean, mean)
    close(found_variance, variance)
    assert mean.norm() > 0.05


# -- the tests ---------------------------------------------------------------------------------------------------


def test_every_estimator_is_written_out():
    assert {*SINGLE, *JOINT} == set(BY_NAME)
    assert len({one.variant.name for one in all_estimators()}) == len(all_estimators())


def test_estimators_are_said_to_be_what_is_proved_here():
    said = {
        one.variant.name: {size: one.variant.claim.scale(size) for size in (2, 3)}
        for one in all_estimators()
        if one.variant.claim.scale
    }
    proved = {name: {2: 1, 3: 1} for name in UNBIASED} | {name: {2: 1 - 1 / 2, 3: 1 - 1 / 3} for name in SHORT}
    assert said == proved


@pytest.mark.parametrize("name", sorted({*SINGLE, *JOINT} - UNBIASED - SHORT))
def test_estimators_said_to_be_biased_are(name):
    """By no scale does the expectation become the gradient."""
    found, exact = moments(name, 0, 1 if name in SINGLE else 2)[0], tree(0).gradient()
    nearest = (found @ exact) / (exact @ exact) * exact
    assert (found - nearest).norm() > 0.02 * exact.norm()


def test_every_optimizer_of_a_policy_stands_in_the_table():
    modules = [import_module(f"{algorithms.__name__}.{found.name}") for found in iter_modules(algorithms.__path__)]
    optimizers = {
        value
        for module in modules
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, OnPolicy | FeedbackAlgorithm) and value.__module__ == module.__name__
    }
    assert {type(one.module(instance(0))) for one in all_estimators()} == optimizers


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("seed", SEEDS)
def test_estimators_of_single_responses(seed, name):
    check(name, seed, 1, partial(each, SINGLE[name], tree(seed)))


@pytest.mark.parametrize("name", JOINT)
def test_estimators_that_compare_responses(name):
    check(name, 0, 2, partial(JOINT[name], tree(0)))


@pytest.mark.parametrize("seed", SEEDS)
def test_exact_gradient_equals_a_sum_over_the_tree(seed):
    at = instance(seed)
    exact = at.objective.gradient(at.policy)
    close(exact, tree(seed).gradient())
    free = Tree(Instance(seed=seed, kl_coef=0.0)).gradient()
    assert exact.norm() > 0.2
    assert (exact - free).norm() > 0.02  # the reference matters


@pytest.mark.parametrize("name", sorted(UNBIASED))
@pytest.mark.parametrize("seed", SEEDS)
def test_expectation_is_the_exact_gradient(seed, name):
    close(moments(name, seed, 2 if name in JOINT else 1)[0], tree(seed).gradient())


@pytest.mark.parametrize("name", sorted(SHORT))
@pytest.mark.parametrize(("seed", "size"), [(0, 2), (1, 2), (0, 3)])
def test_expectation_is_short_of_the_exact_gradient_by_one_over_the_batch(name, seed, size):
    close(moments(name, seed, size)[0], (1 - 1 / size) * tree(seed).gradient())


def test_batch_mean_of_one_response_leaves_nothing():
    mean, variance = moments("REINFORCE, batch mean", 0, 1)
    assert mean.norm() < 1e-12  # 1 − 1/1 = 0
    assert variance > 1e-3  # what is to go after the first token is no longer the return


def test_more_groups_are_averaged():
    """So what holds for one group holds for batches of several; only a mean over tokens joins them."""
    at = instance(0)
    every = as_rollout(at.policy)

    def gradient(module, numbers):
        return batch_gradient(module, scored_batch(every, at.scores, numbers, group_size=2))

    for name, joins in [("RLOO", False), ("GRPO, no std, response sum", False), ("GRPO, no std, token mean", True)]:
        module = BY_NAME[name].module(at)
        halves = (gradient(module, [9, 1]) + gradient(module, [4, 0])) / 2
        assert ((gradient(module, [9, 1, 4, 0]) - halves).norm() > 1e-3) == joins, name


def test_an_average_that_is_updated_before_use_would_be_short():
    """The newest batch has the weight 1 − decay of 1 − decay², so E[g] = (1 − that / B) ∇J: order matters."""

    class Early(MovingAverage):
        def value(self, episode_returns):
            super().update(episode_returns)
            return super().value(episode_returns)

    at, average = instance(0), Early(decay=0.5)
    average.update(torch.tensor([1.0]))
    module = placed(at, REINFORCE, baseline=average)
    found = -expected_gradient(module, at.scores, batch_size=1).mean
    close(found, (1 - 0.5 / (1 - 0.5**2)) * tree(0).gradient())


def test_which_baseline_varies_least_depends_on_the_instance():
    def variance(name, seed):
        return moments(name, seed, 1)[1].item()

    for one, other in [
        ("REINFORCE, whole return", "REINFORCE, reward to go"),
        ("REINFORCE, reward to go", "REINFORCE, exact values"),
    ]:
        assert variance(one, 0) < 0.98 * variance(other, 0)
        assert variance(one, 1) > 1.02 * variance(other, 1)
