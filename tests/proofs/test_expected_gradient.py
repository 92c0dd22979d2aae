"""Expectations over all batches: the bookkeeping."""

import math
from collections import Counter
from itertools import product

import pytest
import torch
from placed import placed

from rlhf_lightning.algorithms.parts.kl_control import AdaptiveKLControl
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.proofs.expectation import batch_gradient, batches, expected_gradient, scored_batch
from rlhf_lightning.proofs.instance import Instance
from rlhf_lightning.tasks.bandit.exact import Objective, probabilities
from rlhf_lightning.tasks.bandit.tree import RESPONSES, as_rollout
from rlhf_lightning.training.optimization import Optimization

AT = Instance()
SCORES = AT.scores


def ppo(**settings):
    """PPO in the middle of a run, away from its reference."""
    return placed(AT, PPO, **{"lam": 1.0, "whiten_advantages": False, **settings})


@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_are_all_that_there_are(size):
    found = list(batches(size))
    assert sum(orders for _, orders in found) == 15**size
    assert len({tuple(numbers) for numbers, _ in found}) == len(found) == math.comb(size + 14, size)


def test_orders_of_a_batch_are_counted():
    by_content = Counter(tuple(sorted(numbers)) for numbers in product(range(15), repeat=3))
    assert {tuple(numbers): orders for numbers, orders in batches(3)} == by_content


def test_scored_batch_is_what_collecting_would_have_given():
    policy = ppo().policy
    scored = scored_batch(as_rollout(policy), SCORES, [9, 0, 9, 1], group_size=2)
    assert scored.responses == [RESPONSES[number] for number in (9, 0, 9, 1)]
    assert torch.equal(scored.scores, SCORES[[9, 0, 9, 1]])
    last = [2, 0, 2, 1]
    expected = [
        [SCORES[n].item() if t == end else 0.0 for t in range(3)] for n, end in zip((9, 0, 9, 1), last, strict=True)
    ]
    assert scored.rewards.tolist() == expected
    assert (scored.group_size, len(scored.prompts)) == (2, 4)
    assert scored.rollout.rows.tolist() == [0, 1, 2, 3]


def test_expectation_equals_a_sum_over_ordered_batches():
    module = ppo(whiten_advantages=True)  # what one row adds depends on the other
    every, p = as_rollout(module.policy), probabilities(module.policy).detach()
    gradients = {
        numbers: batch_gradient(module, scored_batch(every, SCORES, numbers))
        for numbers in product(range(15), repeat=2)
    }
    mean = sum(p[i] * p[j] * gradient for (i, j), gradient in gradients.items())
    variance = sum(p[i] * p[j] * (gradient - mean) @ (gradient - mean) for (i, j), gradient in gradients.items())
    moments = expected_gradient(module, SCORES, batch_size=2)
    torch.testing.assert_close(moments.mean, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(moments.variance, variance, rtol=0, atol=1e-12)


def test_variance_falls_with_the_batch():
    module = ppo()
    one, two = (expected_gradient(module, SCORES, batch_size=size).variance for size in (1, 2))
    assert one > 0.1
    torch.testing.assert_close(two, one / 2)


def test_the_module_stays_as_it_was():
    module = ppo(kl=AdaptiveKLControl(0.3, target=0.01))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    again = [expected_gradient(module, SCORES, batch_size=1) for _ in range(2)]
    assert torch.equal(again[0].mean, again[1].mean)
    assert module.reference.kl.coef == 0.3
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    exact = Objective(SCORES, module.reference.policy, module.reference.kl.coef).gradient(module.policy)
    torch.testing.assert_close(again[0].mean, -exact, rtol=0, atol=1e-12)


def test_parts_of_a_batch_add_up():
    whole, parts = (ppo(optimization=Optimization(microbatch_size=size)) for size in (None, 1))
    scored = scored_batch(as_rollout(whole.policy), SCORES, [9, 0, 9, 1, 5])
    torch.testing.assert_close(batch_gradient(whole, scored), batch_gradient(parts, scored), rtol=0, atol=1e-12)
