import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_expit

from rlhf_lightning.ops.preference import bradley_terry_loss

scores = st.floats(-50, 50)


def loss(chosen: float, rejected: float, margin: float = 0.0) -> float:
    pair = torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64)
    return bradley_terry_loss(*pair, margin=margin).item()


def test_bradley_terry_loss_by_hand():
    assert loss(1.0, 1.0) == pytest.approx(math.log(2))
    # σ(ln 3) = 3/4
    assert loss(math.log(3), 0.0) == pytest.approx(math.log(4 / 3))
    assert loss(0.0, math.log(3)) == pytest.approx(math.log(4))
    # 2 − 0.5 − 1.5 = 0
    assert loss(2.0, 0.5, margin=1.5) == pytest.approx(math.log(2))


@given(scores, scores, st.floats(0, 5))
def test_bradley_terry_loss_against_scipy(chosen, rejected, margin):
    assert loss(chosen, rejected, margin) == pytest.approx(-log_expit(chosen - rejected - margin), rel=1e-9)


@given(scores, scores)
def test_bradley_terry_probabilities_of_both_orders_add_up_to_one(chosen, rejected):
    assert math.exp(-loss(chosen, rejected)) + math.exp(-loss(rejected, chosen)) == pytest.approx(1)


@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(0, 5))
def test_bradley_terry_margin_raises_the_bar(chosen, rejected, margin):
    assert loss(chosen, rejected, margin) == pytest.approx(loss(chosen - margin, rejected))
    assert loss(chosen, rejected, margin) >= loss(chosen, rejected)


def test_bradley_terry_margin_per_pair():
    margin = torch.tensor([0.0, 1.0, 3.0])
    losses = bradley_terry_loss(torch.full((3,), 2.0), torch.zeros(3), margin=margin)
    assert losses.tolist() == pytest.approx([loss(2, 0, m) for m in (0, 1, 3)])


def test_bradley_terry_gradient_is_the_probability_of_the_other_order():
    # ∂/∂r_w −log σ(x) = −σ(−x); the gradient to the rejected score is its opposite
    chosen = torch.tensor([0.0, math.log(3), -math.log(3)], requires_grad=True)
    rejected = torch.zeros(3, requires_grad=True)
    bradley_terry_loss(chosen, rejected, margin=0.0).sum().backward()
    torch.testing.assert_close(chosen.grad, torch.tensor([-0.5, -0.25, -0.75]))
    torch.testing.assert_close(rejected.grad, -chosen.grad)


def test_bradley_terry_loss_of_extreme_scores_does_not_overflow():
    chosen = torch.tensor([1e4, -1e4, 3e38], requires_grad=True)
    rejected = torch.tensor([-1e4, 1e4, 0.0], requires_grad=True)
    losses = bradley_terry_loss(chosen, rejected, margin=1.0)
    losses.sum().backward()
    assert losses.tolist() == [0, 20_001, 0]
    assert chosen.grad.tolist() == [0, -1, 0]
    assert rejected.grad.tolist() == [0, 1, 0]


@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_bradley_terry_loss_is_per_pair(pairs, random):
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).T
    order = random.sample(range(len(pairs)), len(pairs))
    losses = bradley_terry_loss(chosen, rejected, margin=0.0)
    assert torch.equal(bradley_terry_loss(chosen[order], rejected[order], margin=0.0), losses[order])
    assert losses.tolist() == [loss(c, r) for c, r in pairs]
