import math

import numpy as np
import pytest
import torch
from torch import nan, tensor

from rlhf_lightning.ops.objectives import objective_rewards, weighted_advantages

MASK = tensor([[True, True, False], [True, True, True]])


def test_objective_rewards_by_hand():
    """Row 1: 2 · 1 + 1 · 4 = 6 is what the scores are worth; a penalty of 1 makes it 5, and the KL costs 0.3 and 0.6.

    The sum of the weights is 3, so each objective bears −0.3 / 3 = −0.1 at the first action and (5 − 0.6 − 6) / 3 =
    −1.6 / 3 at the second. Row 2: 2 · 3 + 1 · −1 = 5, nothing else is paid.
    """
    rewards = tensor([[-0.3, 4.4, nan], [0.0, 0.0, 5.0]])
    scores, weights = tensor([[1.0, 4.0], [3.0, -1.0]]), tensor([2.0, 1.0])
    found = objective_rewards(rewards, scores, weights, MASK)
    share = -1.6 / 3
    expected = [[[-0.1, -0.1], [1 + share, 4 + share], [0, 0]], [[0, 0], [0, 0], [3, -1]]]
    torch.testing.assert_close(found, tensor(expected))


def test_objective_rewards_weighed_are_the_rewards():
    generator = torch.Generator().manual_seed(0)
    rewards, scores, weights = (
        torch.randn(size, generator=generator, dtype=torch.float64) for size in [(2, 3), (2, 4), (4,)]
    )
    weights[0] += 5  # some are negative; their sum is not
    found = (objective_rewards(rewards, scores, weights, MASK) * weights).sum(-1)
    torch.testing.assert_close(found[MASK], rewards[MASK], rtol=1e-12, atol=1e-12)


def test_weighted_advantages_by_hand():
    """The first objective's 1, 3, 1, 3, 2 have mean 2 and variance (1 + 1 + 1 + 1 + 0) / 5.

    The second's 300, 100, 200, 300, 100 have mean 200 and a hundred times the deviation: 1, −1, 0, 1, −1 in its units.
    """
    first = tensor([[1.0, 3.0, nan], [1.0, 3.0, 2.0]])
    second = tensor([[300.0, 100.0, nan], [200.0, 300.0, 100.0]])
    found = weighted_advantages(torch.stack([first, second], dim=-1), tensor([2.0, 1.0]), MASK, eps=0.0)
    expected = tensor([[2 * -1 + 1, 2 * 1 - 1, 0.0], [2 * -1 + 0, 2 * 1 + 1, 2 * 0 - 1]]) / math.sqrt(4 / 5)
    torch.testing.assert_close(found, expected)


def test_weighted_advantages_do_not_see_scale_and_shift_of_an_objective():
    generator = np.random.default_rng(1)
    advantages = torch.from_numpy(generator.normal(size=(2, 3, 2)))
    moved = advantages * tensor([1.0, 40.0]) + tensor([0.0, -7.0])
    weights = tensor([0.3, 0.7], dtype=torch.float64)
    found = [weighted_advantages(x, weights, MASK, eps=0.0) for x in (advantages, moved)]
    torch.testing.assert_close(*found)
    assert found[0][MASK].abs().min() > 0
    assert found[0][0, 2] == 0


@pytest.mark.parametrize("value", [0.1, 1e5])
def test_an_objective_whose_advantages_are_all_equal_adds_nothing(value):
    advantages = torch.full((2, 3, 2), value)
    advantages[0, :, 0] = 0.0
    weights = tensor([1.0, 5.0])
    alone = weighted_advantages(advantages[..., :1], weights[:1], MASK, eps=1e-8)
    torch.testing.assert_close(weighted_advantages(advantages, weights, MASK, eps=1e-8), alone)
