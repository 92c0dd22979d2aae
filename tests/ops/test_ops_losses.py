import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rlhf_lightning.ops.losses import clipped_surrogate_loss, ratio_is_clipped, value_loss

NAN = float("nan")

log_ratios = st.floats(-3, 3)
numbers = st.floats(-10, 10)


def surrogate(log_ratio: float, advantage: float, clip_range: float = 0.2) -> tuple[float, float]:
    """Loss and its derivative by the log ratio."""
    x = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    loss = clipped_surrogate_loss(x, torch.tensor([advantage], dtype=torch.float64), clip_range=clip_range)
    loss.sum().backward()
    return loss.item(), x.grad.item()


def critic(value: float, old: float, target: float, clip: float | None) -> tuple[float, float]:
    """Loss and its derivative by the value."""
    v = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    loss = value_loss(
        v,
        torch.tensor([old], dtype=torch.float64),
        torch.tensor([target], dtype=torch.float64),
        value_clip_range=clip,
    )
    loss.sum().backward()
    return loss.item(), v.grad.item()


# clipped_surrogate_loss, ratio_is_clipped


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "derivative", "clipped"),
    [
        (1.5, 2.0, -2.4, 0.0, True),  # above the range and good: −1.2 · 2, flat
        (1.5, -2.0, 3.0, 3.0, False),  # above and bad: −1.5 · −2; ∂(−rÂ)/∂log r = −rÂ
        (0.5, 2.0, -1.0, -1.0, False),  # below and good: −0.5 · 2
        (0.5, -2.0, 1.6, 0.0, True),  # below and bad: −0.8 · −2, flat
        (1.1, 2.0, -2.2, -2.2, False),  # inside
        (0.9, -2.0, 1.8, 1.8, False),
        (1.0, 2.0, -2.0, -2.0, False),  # the first minibatch: the policy gradient
        (1.5, 0.0, 0.0, 0.0, False),
    ],
)
def test_clipped_surrogate_loss_by_hand(ratio, advantage, loss, derivative, clipped):
    assert surrogate(math.log(ratio), advantage) == pytest.approx((loss, derivative))
    arguments = torch.tensor([ratio]).log(), torch.tensor([advantage])
    assert ratio_is_clipped(*arguments, clip_range=0.2).tolist() == [clipped]


@given(log_ratios, numbers, st.floats(0.05, 0.5))
def test_ratio_is_clipped_where_the_surrogate_has_no_gradient(log_ratio, advantage, clip_range):
    assume(abs(advantage) > 1e-3)
    assume(min(abs(math.exp(log_ratio) - 1 - s * clip_range) for s in (-1, 1)) > 1e-6)
    _, derivative = surrogate(log_ratio, advantage, clip_range)
    clipped = ratio_is_clipped(torch.tensor([log_ratio]), torch.tensor([advantage]), clip_range=clip_range).item()
    assert clipped == (derivative == 0)
    assert clipped or derivative == pytest.approx(-math.exp(log_ratio) * advantage)


@given(log_ratios, numbers, st.floats(0.05, 0.5))
def test_clipped_surrogate_loss_against_plain_python(log_ratio, advantage, clip_range):
    ratio = math.exp(log_ratio)
    kept = min(max(ratio, 1 - clip_range), 1 + clip_range)
    loss, _ = surrogate(log_ratio, advantage, clip_range)
    assert loss == pytest.approx(-min(ratio * advantage, kept * advantage))
    assert loss >= -ratio * advantage - 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_ratio_exactly_at_the_edge_is_not_clipped(dtype):
    # 1 ± 1/4 and the log ratios that give them back exactly
    log_ratio = torch.tensor([1.25, 0.75], dtype=torch.float64).log().to(dtype)
    edge = log_ratio.exp() == torch.tensor([1.25, 0.75], dtype=dtype)
    advantages = torch.tensor([1.0, -1.0], dtype=dtype)
    assert edge.any()
    assert not ratio_is_clipped(log_ratio, advantages, clip_range=0.25)[edge].any()


def test_clipped_surrogate_gradient_against_finite_differences():
    log_ratio = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.1, -0.1], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate_loss(x, advantages, clip_range=0.2), log_ratio)


def test_clipped_surrogate_expected_gradient_on_policy_is_the_policy_gradient():
    # over an enumerated policy, r = 1: −∇ Σ π Â, whatever the clip range
    logits = torch.tensor([0.2, -0.5, 1.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    logprobs = logits.log_softmax(-1)
    old = logprobs.detach()
    loss = (old.exp() * clipped_surrogate_loss(logprobs - old, advantages, clip_range=0.1)).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(-(logits.softmax(-1) * advantages).sum(), logits)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("log_ratio", [-200.0, -80.0, 80.0])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_clipped_surrogate_loss_of_extreme_ratios_stays_finite(log_ratio, advantage):
    x = torch.tensor([log_ratio], requires_grad=True)
    loss = clipped_surrogate_loss(x, torch.tensor([advantage]), clip_range=0.2)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, a: clipped_surrogate_loss(x, a, clip_range=0.2),
        lambda x, a: value_loss(x, a, a + 1, value_clip_range=1.0),
        lambda x, a: value_loss(x, a, a + 1, value_clip_range=None),
    ],
)
def test_losses_of_selected_positions_keep_nan_out_of_every_gradient(loss):
    counts = torch.tensor([[True, True], [True, False]])
    x = torch.tensor([[0.1, -0.1], [0.05, NAN]], requires_grad=True)
    other = torch.tensor([[1.0, -1.0], [2.0, NAN]])
    losses = loss(x[counts], other[counts])
    losses.sum().backward()
    assert losses.isfinite().all()
    assert (x.grad[counts] != 0).all()
    assert x.grad[1, 1] == 0
    # and each position is on its own, so selecting after gives the same values
    assert torch.equal(loss(x, other)[counts], losses)


def test_ratio_is_clipped_by_nan_never():
    assert not ratio_is_clipped(torch.tensor([NAN, 1.0]), torch.tensor([1.0, NAN]), clip_range=0.2).any()


# value_loss


def test_value_loss_by_hand():
    # ½ (2 − 5)² = 4.5, derivative 2 − 5
    assert critic(2.0, 0.0, 5.0, None) == (4.5, -3)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "derivative"),
    [
        (2.0, 0.0, 3.0, 3.125, 0.0),  # moved 2 towards 3, counted as 0.5: ½ · 2.5², flat
        (2.0, 0.0, -1.0, 4.5, 3.0),  # moved 2 away: ½ · 3² outweighs ½ · 1.5²
        (-2.0, 0.0, -3.0, 3.125, 0.0),
        (0.25, 0.0, 3.0, 3.78125, -2.75),  # inside the range: ½ · 2.75²
        (1.0, 1.0, 1.0, 0.0, 0.0),
    ],
)
def test_clipped_value_loss_by_hand(value, old, target, loss, derivative):
    assert critic(value, old, target, 0.5) == (loss, derivative)


@given(numbers, numbers, numbers, st.floats(0.01, 5))
def test_clipped_value_loss_against_plain_python(value, old, target, clip):
    kept = old + min(max(value - old, -clip), clip)
    loss, _ = critic(value, old, target, clip)
    assert loss == pytest.approx(max(0.5 * (value - target) ** 2, 0.5 * (kept - target) ** 2))
    assert loss >= critic(value, old, target, None)[0]


@given(numbers, numbers, numbers, st.floats(0.01, 5))
def test_clipped_value_gradient_is_the_plain_one_or_zero(value, old, target, clip):
    kept = old + min(max(value - old, -clip), clip)
    assume(abs(abs(value - target) - abs(kept - target)) > 1e-9 or abs(value - old) < clip - 1e-9)
    _, derivative = critic(value, old, target, clip)
    flat = abs(value - old) > clip and abs(kept - target) > abs(value - target)
    assert derivative == pytest.approx(0 if flat else value - target)


@given(numbers, numbers, numbers)
def test_a_wide_value_clip_range_changes_nothing(value, old, target):
    assert critic(value, old, target, 1e6) == pytest.approx(critic(value, old, target, None), abs=1e-9)
