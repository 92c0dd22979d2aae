import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rlhf_lightning.ops.losses import (
    clipped_surrogate_loss,
    conservative_weights,
    policy_gradient_loss,
    ratio_is_clipped,
    unlikelihood_loss,
    value_loss,
)

NAN, INF = math.nan, math.inf
CLIP = {"clip_range": 0.2, "clip_range_high": 0.2, "dual_clip": None}
NO_CLIP = {"clip_range": INF, "clip_range_high": INF, "dual_clip": None}

log_ratios = st.floats(-3, 3)
numbers = st.floats(-10, 10)
clips = st.fixed_dictionaries(
    {
        "clip_range": st.floats(0.05, 0.5) | st.just(1.0) | st.just(INF),
        "clip_range_high": st.floats(0.05, 0.5) | st.just(INF),
        "dual_clip": st.none() | st.floats(1.1, 5),
    }
)


def surrogate(log_ratio: float, advantage: float, **clip) -> tuple[float, float]:
    """Loss and its derivative by the log ratio."""
    x = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    loss = clipped_surrogate_loss(x, torch.tensor([advantage], dtype=torch.float64), **(CLIP | clip))
    loss.sum().backward()
    return loss.item(), x.grad.item()


def clipped(log_ratio: float, advantage: float, **clip) -> bool:
    pair = torch.tensor([log_ratio], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    return ratio_is_clipped(*pair, **(CLIP | clip)).item()


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


# policy_gradient_loss


def test_policy_gradient_loss_by_hand():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = policy_gradient_loss(logprobs, torch.tensor([3.0, -0.5]))
    loss.sum().backward()
    assert loss.tolist() == [3, -1]
    assert logprobs.grad.tolist() == [-3, 0.5]


# clipped_surrogate_loss, ratio_is_clipped


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "derivative", "is_clipped"),
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
def test_clipped_surrogate_loss_by_hand(ratio, advantage, loss, derivative, is_clipped):
    assert surrogate(math.log(ratio), advantage) == pytest.approx((loss, derivative))
    assert clipped(math.log(ratio), advantage) == is_clipped


@pytest.mark.parametrize(
    ("ratio", "advantage", "clip", "loss", "derivative", "is_clipped"),
    [
        (1.25, 2.0, {"clip_range_high": 0.28}, -2.5, -2.5, False),  # inside the wider upper range
        (1.5, 2.0, {"clip_range_high": 0.28}, -2.56, 0.0, True),  # −1.28 · 2
        (0.75, -2.0, {"clip_range_high": 0.28}, 1.6, 0.0, True),  # the lower range stays 0.2
        (0.01, -2.0, {"clip_range": 0.95}, 0.1, 0.0, True),  # −0.05 · −2
        (0.01, -2.0, {"clip_range": 1.0}, 0.02, 0.02, False),  # from 1 on there is no lower bound
        (9.0, 2.0, {"clip_range_high": INF}, -18.0, -18.0, False),
        (2.0, -2.0, {"dual_clip": 3.0}, 4.0, 4.0, False),  # below c = 3
        (9.0, -2.0, {"dual_clip": 3.0}, 6.0, 0.0, True),  # −3 · −2, flat
        (9.0, 2.0, {"dual_clip": 3.0, "clip_range_high": INF}, -18.0, -18.0, False),  # only for bad actions
        (1.15, -2.0, {"dual_clip": 1.1}, 2.2, 0.0, True),  # it may lie inside the upper range
    ],
)
def test_clipped_surrogate_loss_with_two_ranges_and_dual_clip_by_hand(
    ratio, advantage, clip, loss, derivative, is_clipped
):
    assert surrogate(math.log(ratio), advantage, **clip) == pytest.approx((loss, derivative))
    assert clipped(math.log(ratio), advantage, **clip) == is_clipped


@given(log_ratios, numbers, clips)
def test_clipped_surrogate_loss_against_plain_python(log_ratio, advantage, clip):
    ratio, dual = math.exp(log_ratio), clip["dual_clip"]
    kept = min(max(ratio, 1 - clip["clip_range"]), 1 + clip["clip_range_high"])
    objective = min(ratio * advantage, kept * advantage)
    if dual is not None and advantage < 0:
        objective = max(objective, dual * advantage)
    loss, _ = surrogate(log_ratio, advantage, **clip)
    assert loss == pytest.approx(-objective)


@given(log_ratios, numbers, clips)
def test_ratio_is_clipped_where_the_surrogate_has_no_gradient(log_ratio, advantage, clip):
    edges = [1 - clip["clip_range"], 1 + clip["clip_range_high"], clip["dual_clip"] or 0]
    assume(abs(advantage) > 1e-3)
    assume(min(abs(math.exp(log_ratio) - edge) for edge in edges) > 1e-6)
    _, derivative = surrogate(log_ratio, advantage, **clip)
    is_clipped = clipped(log_ratio, advantage, **clip)
    assert is_clipped == (derivative == 0)
    assert is_clipped or derivative == pytest.approx(-math.exp(log_ratio) * advantage)


@given(st.floats(-30, 30), numbers)
def test_infinite_clip_ranges_leave_the_plain_surrogate(log_ratio, advantage):
    expected = -math.exp(log_ratio) * advantage
    assert surrogate(log_ratio, advantage, **NO_CLIP) == pytest.approx((expected, expected))
    assert not clipped(log_ratio, advantage, **NO_CLIP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_ratio_exactly_at_the_edge_is_not_clipped(dtype):
    # 1 ± 1/4 and the log ratios that give them back exactly
    log_ratio = torch.tensor([1.25, 0.75], dtype=torch.float64).log().to(dtype)
    edge = log_ratio.exp() == torch.tensor([1.25, 0.75], dtype=dtype)
    advantages = torch.tensor([1.0, -1.0], dtype=dtype)
    assert edge.any()
    is_clipped = ratio_is_clipped(log_ratio, advantages, clip_range=0.25, clip_range_high=0.25, dual_clip=None)
    assert not is_clipped[edge].any()


@pytest.mark.parametrize("clip", [CLIP, NO_CLIP, CLIP | {"clip_range_high": 0.28, "dual_clip": 3.0}])
def test_clipped_surrogate_gradient_against_finite_differences(clip):
    log_ratio = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.1, -0.1, 2.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0, -2.0, -1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate_loss(x, advantages, **clip), log_ratio)


def expected_loss(loss) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of a per-action loss at the old policy, averaged over its enumerated actions, and the exact one."""
    logits = torch.tensor([0.2, -0.5, 1.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    logprobs = logits.log_softmax(-1)
    old = logprobs.detach()
    (gradient,) = torch.autograd.grad((old.exp() * loss(logprobs, old, advantages)).sum(), logits)
    (exact,) = torch.autograd.grad(-(logits.softmax(-1) * advantages).sum(), logits)
    return gradient, exact


@pytest.mark.parametrize(
    "loss",
    [
        lambda new, old, a: policy_gradient_loss(new, a),
        lambda new, old, a: clipped_surrogate_loss(new - old, a, clip_range=0.1, clip_range_high=0.2, dual_clip=3.0),
        lambda new, old, a: clipped_surrogate_loss(new - old, a, **NO_CLIP),
    ],
)
def test_expected_gradient_on_policy_is_the_policy_gradient(loss):
    torch.testing.assert_close(*expected_loss(loss))


@pytest.mark.parametrize("log_ratio", [-2000.0, -80.0, 80.0, 2000.0])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_clipped_surrogate_loss_of_extreme_ratios_stays_finite(log_ratio, advantage):
    # e^2000 overflows: a product of token ratios gets there
    x = torch.tensor([log_ratio], requires_grad=True)
    loss = clipped_surrogate_loss(x, torch.tensor([advantage]), **(CLIP | {"dual_clip": 3.0}))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert x.grad.isfinite().all()


def test_a_bad_action_of_infinite_ratio_shows_without_dual_clip():
    x = torch.tensor([2000.0])
    assert clipped_surrogate_loss(x, torch.tensor([-1.0]), **CLIP).tolist() == [INF]
    assert clipped_surrogate_loss(x, torch.tensor([1.0]), **CLIP).tolist() == pytest.approx([-1.2])


@pytest.mark.parametrize(
    "loss",
    [
        policy_gradient_loss,
        lambda x, a: clipped_surrogate_loss(x, a, **CLIP),
        lambda x, a: clipped_surrogate_loss(x, a, **NO_CLIP),
        lambda x, a: unlikelihood_loss(-x.abs()),
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


@pytest.mark.parametrize("clip", [CLIP, NO_CLIP, CLIP | {"dual_clip": 3.0}])
def test_ratio_is_clipped_by_nan_never(clip):
    nan = torch.tensor([NAN, 3.0, -3.0, NAN]), torch.tensor([1.0, NAN, NAN, NAN])
    assert not ratio_is_clipped(*nan, **clip).any()
    assert clipped_surrogate_loss(*nan, **clip).isnan().all()


# conservative_weights


def weights(advantages, mask=None, *, mixture: float, temperature: float) -> torch.Tensor:
    advantages = torch.as_tensor(advantages, dtype=torch.float64)
    mask = torch.ones_like(advantages, dtype=torch.bool) if mask is None else torch.tensor(mask)
    return conservative_weights(advantages, mask, mixture=mixture, temperature=temperature)


def test_conservative_weights_by_hand():
    # e^{Â/η} = 1, 2, 3, of mean 2: w = 1/2, 1, 3/2; half of each and half of 1
    advantages = [2 * math.log(k) for k in (1, 2, 3)]
    assert weights(advantages, mixture=0.5, temperature=2.0).tolist() == pytest.approx([0.75, 1, 1.25])
    padded = weights(
        [[*advantages[:2], NAN], [advantages[2], INF, -INF]],
        [[1 == 1, True, False], [True, False, False]],
        mixture=0.5,
        temperature=2.0,
    )
    assert padded.flatten().tolist() == pytest.approx([0.75, 1, 0, 1.25, 0, 0])


def test_conservative_weights_of_no_mixture_are_one():
    assert weights([5.0, -3.0], mixture=0.0, temperature=1.0).tolist() == [1, 1]


@given(
    st.lists(st.tuples(numbers, st.booleans()), min_size=1, max_size=8), st.floats(0, 1), st.floats(0.1, 10), numbers
)
def test_conservative_weights_against_a_loop(entries, mixture, temperature, shift):
    advantages, mask = [a if counts else NAN for a, counts in entries], [counts for _, counts in entries]
    exponentials = [math.exp(a / temperature) for a, counts in entries if counts]
    expected = [
        (1 - mixture) + mixture * math.exp(a / temperature) * len(exponentials) / sum(exponentials) if counts else 0
        for a, counts in entries
    ]
    result = weights(advantages, mask, mixture=mixture, temperature=temperature)
    assert result.tolist() == pytest.approx(expected, rel=1e-9)
    assert result.sum().item() == pytest.approx(len(exponentials))
    # advantages matter only relative to each other
    moved = weights([a + shift for a in advantages], mask, mixture=mixture, temperature=temperature)
    torch.testing.assert_close(moved, result)


def test_conservative_weights_of_extreme_advantages_do_not_overflow():
    result = conservative_weights(
        torch.tensor([3e38, 0.0, -3e38]), torch.ones(3, dtype=torch.bool), mixture=0.25, temperature=1e-3
    )
    assert result.tolist() == [0.75 + 0.25 * 3, 0.75, 0.75]


def test_conservative_weights_have_the_mixture_as_their_optimum():
    # one state, each action once per 1/4 of the old policy: −Σ weight log π / n is least where π is the mean weight
    old = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 3.0], dtype=torch.float64)
    actions = torch.tensor([0, 1, 1, 2])
    result = weights(advantages[actions], mixture=0.3, temperature=2.0)
    optimum = torch.zeros(3, dtype=torch.float64).index_add(0, actions, result) / 4
    greedy = old * (advantages / 2).exp()
    torch.testing.assert_close(optimum, 0.7 * old + 0.3 * greedy / greedy.sum())


# unlikelihood_loss


def unlikelihood(logprob: float, dtype=torch.float64) -> tuple[float, float]:
    """Loss and its derivative by the log-probability."""
    x = torch.tensor([logprob], dtype=dtype, requires_grad=True)
    loss = unlikelihood_loss(x)
    loss.sum().backward()
    return loss.item(), x.grad.item()


def exact_unlikelihood(logprob: float) -> float:
    """−log(1 − e^x) with 400 digits."""
    with localcontext() as context:
        context.prec = 400
        return float(-(1 - Decimal(logprob).exp()).ln())


def test_unlikelihood_loss_by_hand():
    # p / (1 − p) is the derivative
    assert unlikelihood(math.log(0.5)) == pytest.approx((math.log(2), 1))
    assert unlikelihood(math.log(0.75)) == pytest.approx((math.log(4), 3))
    assert unlikelihood(-INF) == (0, 0)


@pytest.mark.parametrize("logprob", [-700.0, -50.0, -20.0, -2.0, -0.7, -0.69, -0.1, -1e-3, math.log1p(-1e-7), -1e-8])
def test_unlikelihood_loss_against_exact_arithmetic(logprob):
    # a central difference of the exact function, which cancels nothing at 400 digits
    step = abs(logprob) * 1e-5
    slope = (exact_unlikelihood(logprob + step) - exact_unlikelihood(logprob - step)) / (2 * step)
    # rounding p once is an error of 2e-16 / (1 − p), which reaches 2e-8 at the last of these
    loss, derivative = unlikelihood(logprob)
    assert loss == pytest.approx(exact_unlikelihood(logprob), rel=1e-7, abs=0)
    assert derivative == pytest.approx(slope, rel=1e-5, abs=0)


@pytest.mark.parametrize("logprob", [-100.0, -20.0, -1.0, -0.69, -1e-2, -1e-4])
def test_unlikelihood_loss_in_float32_against_exact_arithmetic(logprob):
    rounded = torch.tensor(logprob).item()
    # 1.2e-7 / (1 − p) is 1e-3 at the last of these
    loss, derivative = unlikelihood(logprob, torch.float32)
    assert loss == pytest.approx(exact_unlikelihood(rounded), rel=1e-3, abs=1e-44)
    assert derivative == pytest.approx(math.exp(rounded) / -math.expm1(rounded), rel=2e-3, abs=1e-44)


@pytest.mark.parametrize("logprob", [-1e-3, -0.3, -0.6931, -0.6932, -2.0, -30.0])
def test_unlikelihood_gradient_against_finite_differences(logprob):
    x = torch.tensor([logprob], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unlikelihood_loss, x, eps=1e-8, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unlikelihood_of_a_certain_action_is_finite(dtype):
    # the bound: −log ε and 1/ε
    eps = torch.finfo(dtype).eps
    loss, derivative = unlikelihood(0.0, dtype)
    assert loss == pytest.approx(-math.log(eps), rel=1e-6)
    assert derivative == pytest.approx(1 / eps, rel=1e-6)
    # and on the way there both only grow
    steps = [unlikelihood(-eps * k, dtype) for k in (100, 10, 2, 1, 0.5, 0)]
    assert steps == sorted(steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [0.0, 5.0, 14.0, 15.5, 16.0, 17.0, 30.0, 36.0, 37.0, 200.0])
def test_unlikelihood_gradient_of_confident_logits_is_bounded(dtype, lead):
    # behind a softmax the derivatives by the two logits are p and −p, up to what rounds away near p = 1
    logits = torch.tensor([lead, 0.0], dtype=dtype, requires_grad=True)
    unlikelihood_loss(logits.log_softmax(-1)[:1]).sum().backward()
    assert logits.grad.isfinite().all()
    assert 0 <= logits.grad[0] <= 1
    assert -1 <= logits.grad[1] <= 0
    if lead <= 5:
        assert logits.grad.tolist() == pytest.approx([1 / (1 + math.exp(-lead)), -1 / (1 + math.exp(-lead))], rel=1e-4)


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
