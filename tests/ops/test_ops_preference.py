import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, log_expit

from rlhf_lightning.ops.preference import bradley_terry_loss as smoothed_bradley_terry_loss
from rlhf_lightning.ops.preference import ipo_loss, sigmoid_preference_loss

scores = st.floats(-50, 50)


betas = st.floats(0.01, 2)
smoothings = st.floats(0, 0.49)

bradley_terry_loss = partial(smoothed_bradley_terry_loss, label_smoothing=0.0)


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


def smoothed(difference: float, smoothing: float) -> tuple[float, float]:
    """Loss and its derivative by the difference of scores."""
    chosen = torch.tensor([difference], dtype=torch.float64, requires_grad=True)
    losses = smoothed_bradley_terry_loss(chosen, torch.zeros_like(chosen), margin=0.0, label_smoothing=smoothing)
    losses.sum().backward()
    return losses.item(), chosen.grad.item()


def test_bradley_terry_loss_with_smoothed_labels_by_hand():
    # σ(ln 3) = 3/4, one label in five is wrong: 0.8 ln(4/3) + 0.2 ln 4, derivative 3/4 − 0.8
    assert smoothed(math.log(3), 0.2) == pytest.approx((0.8 * math.log(4 / 3) + 0.2 * math.log(4), -0.05))


@given(st.floats(-20, 20), st.floats(0, 5), smoothings)
def test_bradley_terry_gradient_against_finite_differences(difference, margin, smoothing):
    def value(chosen: float) -> float:
        pair = torch.tensor([chosen], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        return smoothed_bradley_terry_loss(*pair, margin=margin, label_smoothing=smoothing).item()

    step = 1e-5
    central = (value(difference + margin + step) - value(difference + margin - step)) / (2 * step)
    assert smoothed(difference, smoothing)[1] == pytest.approx(central, abs=1e-8)


# sigmoid_preference_loss, ipo_loss


def pair_loss(function, chosen: float, rejected: float, **options: float) -> tuple[float, float, float]:
    """Loss and its derivatives by the two log ratios."""
    pair = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (chosen, rejected)]
    losses = function(*pair, **options)
    losses.sum().backward()
    return losses.item(), pair[0].grad.item(), pair[1].grad.item()


def sigmoid(chosen: float, rejected: float, beta: float, label_smoothing: float = 0.0) -> tuple[float, float, float]:
    return pair_loss(sigmoid_preference_loss, chosen, rejected, beta=beta, label_smoothing=label_smoothing)


def test_sigmoid_preference_loss_by_hand():
    # at the reference every pair costs ln 2 and pulls with β/2
    assert sigmoid(0.0, 0.0, beta=0.1) == pytest.approx((math.log(2), -0.05, 0.05))
    # βh = ½ · (ln 9 − 0) = ln 3, σ = 3/4; the gradient is −β (1 − 3/4)
    assert sigmoid(math.log(9), 0.0, beta=0.5) == pytest.approx((math.log(4 / 3), -0.125, 0.125))
    # a label is wrong one time in ten: 0.9 ln(4/3) + 0.1 ln 4, gradient −β (0.9 · 1/4 − 0.1 · 3/4) = −0.075
    expected = 0.9 * math.log(4 / 3) + 0.1 * math.log(4), -0.075, 0.075
    assert sigmoid(math.log(9), 0.0, beta=0.5, label_smoothing=0.1) == pytest.approx(expected)


@given(scores, scores, betas, smoothings)
def test_sigmoid_preference_loss_against_scipy(chosen, rejected, beta, smoothing):
    logit = beta * (chosen - rejected)
    value, by_chosen, by_rejected = sigmoid(chosen, rejected, beta, smoothing)
    assert value == pytest.approx(-(1 - smoothing) * log_expit(logit) - smoothing * log_expit(-logit), rel=1e-9)
    slope = -beta * ((1 - smoothing) * expit(-logit) - smoothing * expit(logit))
    assert (by_chosen, by_rejected) == pytest.approx((slope, -slope), rel=1e-9, abs=1e-12)


@given(scores, scores, betas)
def test_sigmoid_preference_loss_without_smoothing_is_bradley_terry_on_implicit_rewards(chosen, rejected, beta):
    assert sigmoid(chosen, rejected, beta)[0] == pytest.approx(loss(beta * chosen, beta * rejected), rel=1e-9)


@pytest.mark.parametrize("smoothing", [0.05, 0.2, 0.4])
def test_smoothed_sigmoid_loss_is_least_where_the_probability_is_that_of_a_right_label(smoothing):
    # σ(βh) = 1 − ε
    margin = math.log((1 - smoothing) / smoothing) / 0.1
    value, slope, _ = sigmoid(margin, 0.0, 0.1, smoothing)
    assert slope == pytest.approx(0, abs=1e-12)
    assert value < min(sigmoid(margin + step, 0.0, 0.1, smoothing)[0] for step in (-1, 1))


def test_sigmoid_preference_loss_of_both_labels_weighted_by_bradley_terry_has_the_tilted_reference_as_optimum():
    # three responses with rewards r: log π/π_ref = r/β + constant has no gradient over all ordered pairs
    rewards, beta = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64), 0.3
    log_ratio = (rewards / beta).requires_grad_()
    first, second = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    weight = (rewards[first] - rewards[second]).sigmoid()
    losses = sigmoid_preference_loss(log_ratio[first], log_ratio[second], beta=beta, label_smoothing=0.0)
    (gradient,) = torch.autograd.grad((weight * losses).sum(), log_ratio)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_sigmoid_preference_loss_of_extreme_log_ratios_does_not_overflow():
    chosen = torch.tensor([1e5, -1e5], requires_grad=True)
    losses = sigmoid_preference_loss(chosen, -chosen.detach(), beta=0.1, label_smoothing=0.25)
    losses.sum().backward()
    # βh = ±20,000, of which a quarter or three quarters are paid
    assert losses.tolist() == [5_000, 15_000]
    torch.testing.assert_close(chosen.grad, torch.tensor([0.025, -0.075]))


def test_ipo_loss_by_hand():
    # h = 3, 1/(2β) = 2: 1², derivative 2; at the reference the square of 2
    assert pair_loss(ipo_loss, 2.0, -1.0, beta=0.25) == pytest.approx((1, 2, -2))
    assert pair_loss(ipo_loss, 0.0, 0.0, beta=0.25) == pytest.approx((4, -4, 4))


@given(scores, betas)
def test_ipo_loss_is_zero_at_its_margin_and_symmetric_around_it(rejected, beta):
    margin = 1 / (2 * beta)
    assert pair_loss(ipo_loss, rejected + margin, rejected, beta=beta) == pytest.approx((0, 0, 0), abs=1e-9)
    less, more = (pair_loss(ipo_loss, rejected + margin + step, rejected, beta=beta)[0] for step in (-3, 3))
    assert less == pytest.approx(9)
    assert more == pytest.approx(9)


@pytest.mark.parametrize(
    "function",
    [
        lambda c, r: sigmoid_preference_loss(c, r, beta=0.1, label_smoothing=0.1),
        lambda c, r: ipo_loss(c, r, beta=0.1),
    ],
)
@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_preference_losses_are_per_pair(function, pairs, random):
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).T
    order = random.sample(range(len(pairs)), len(pairs))
    losses = function(chosen, rejected)
    assert torch.equal(function(chosen[order], rejected[order]), losses[order])
    assert torch.equal(torch.cat([function(c[None], r[None]) for c, r in zip(chosen, rejected, strict=True)]), losses)
    pair = chosen.clone().requires_grad_(), rejected.clone().requires_grad_()
    assert torch.autograd.gradcheck(function, pair)
