import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.ops.advantages import discounted_returns, episode_totals, following_values, gae

NAN = float("nan")


def continuing(mask):
    """False at the last action of each row."""
    return torch.nn.functional.pad(mask[:, 1:], (0, 1), value=False)


seeds = st.integers(0, 2**32 - 1)
unit = st.floats(0, 1)


def steps(seed: int, rows: int = 3, width: int = 6):
    """Random rewards, values, next values and episode ends."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values, next_values = torch.randn(3, rows, width, generator=generator, dtype=torch.float64)
    continues = torch.rand(rows, width, generator=generator) < 0.7
    return rewards, values, next_values, continues


def advantages_by_definition(rewards, values, next_values, continues, gamma: float, lam: float):
    """Âₜ = Σₖ (γλ)^{k−t} δₖ over k ≥ t, as far as the episode goes: every sum on its own."""
    advantages = torch.zeros_like(rewards)
    rows, width = rewards.shape
    for b in range(rows):
        for t in range(width):
            for k in range(t, width):
                delta = rewards[b, k] + gamma * next_values[b, k] - values[b, k]
                advantages[b, t] += (gamma * lam) ** (k - t) * delta
                if not continues[b, k]:
                    break
    return advantages


# discounted_returns


def test_discounted_returns_by_hand():
    # 3; 2 + 0.5 · 3 = 3.5; 1 + 0.5 · 3.5 = 2.75
    returns = discounted_returns(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[True, True, False]]), gamma=0.5)
    assert returns.tolist() == [[2.75, 3.5, 3]]


def test_discounted_returns_stop_where_an_episode_does():
    # two episodes in one row: 1 + 0.5 · 2, 2 | 3 + 0.5 · 4, 4
    rewards = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    continues = torch.tensor([[True, False, True, False]])
    assert discounted_returns(rewards, continues, gamma=0.5).tolist() == [[2, 2, 5, 4]]


def test_discounted_returns_ignore_what_would_follow_the_last_column():
    rewards = torch.tensor([[1.0, 2.0]])
    open_end = discounted_returns(rewards, torch.tensor([[True, True]]), gamma=1.0)
    assert torch.equal(open_end, discounted_returns(rewards, torch.tensor([[True, False]]), gamma=1.0))


@given(seeds)
def test_discounted_returns_at_gamma_0_and_1(seed):
    rewards, _, _, _ = steps(seed)
    continues = torch.ones_like(rewards, dtype=torch.bool)
    assert torch.equal(discounted_returns(rewards, continues, gamma=0.0), rewards)
    torch.testing.assert_close(discounted_returns(rewards, continues, gamma=1.0), rewards.flip(1).cumsum(1).flip(1))


def test_discounted_returns_gradient_is_the_matrix_of_discounts():
    # ∂Rₜ/∂rₖ = γ^{k−t} for k ≥ t within the episode; here it ends after the second step
    rewards = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    continues = torch.tensor([[True, False, True, False]])
    jacobian = torch.autograd.functional.jacobian(
        lambda r: discounted_returns(r, continues, gamma=0.5).squeeze(0), rewards
    ).squeeze(1)
    expected = [[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0, 1]]
    assert jacobian.tolist() == expected


# gae


def test_gae_by_hand():
    # δ₁ = 1 + 0.5 · 4 − 2 = 1, δ₀ = 0 + 0.5 · 2 − 1 = 0; Â₁ = 1, Â₀ = 0 + 0.5 · 0.8 · 1 = 0.4; returns Â + V
    advantages, returns = gae(
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[2.0, 4.0]]),
        torch.tensor([[True, False]]),
        gamma=0.5,
        lam=0.8,
    )
    torch.testing.assert_close(advantages, torch.tensor([[0.4, 1.0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.4, 3.0]]))


def test_gae_bootstraps_after_truncation_and_not_after_termination():
    # one step, r = 1, V = 3, γ = 0.9; terminated: 1 − 3 = −2; truncated with V′ = 5: 1 + 4.5 − 3 = 2.5
    once = {"gamma": 0.9, "lam": 0.95}
    reward, value, ends = torch.tensor([[1.0]]), torch.tensor([[3.0]]), torch.tensor([[False]])
    terminated, _ = gae(reward, value, torch.tensor([[0.0]]), ends, **once)
    truncated, _ = gae(reward, value, torch.tensor([[5.0]]), ends, **once)
    assert terminated.item() == pytest.approx(-2)
    assert truncated.item() == pytest.approx(2.5)


@given(seeds, unit, unit)
def test_gae_against_its_definition(seed, gamma, lam):
    inputs = steps(seed)
    advantages, returns = gae(*inputs, gamma=gamma, lam=lam)
    expected = advantages_by_definition(*inputs, gamma, lam)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected + inputs[1])


@given(seeds, unit)
def test_gae_at_lambda_0_is_one_step(seed, gamma):
    rewards, values, next_values, continues = steps(seed)
    advantages, returns = gae(rewards, values, next_values, continues, gamma=gamma, lam=0.0)
    torch.testing.assert_close(advantages, rewards + gamma * next_values - values)
    torch.testing.assert_close(returns, rewards + gamma * next_values)


@given(seeds, unit)
def test_gae_at_lambda_1_is_monte_carlo_with_the_last_value(seed, gamma):
    # within an episode the values telescope: Âₜ = rewards to go + γ^{n} V(final) − Vₜ
    rewards, values, _, _ = steps(seed, rows=1, width=5)
    last = 2.5
    next_values = torch.cat([values[:, 1:], torch.full((1, 1), last)], 1)
    _, returns = gae(rewards, values, next_values, torch.tensor([[True] * 4 + [False]]), gamma=gamma, lam=1.0)
    r = rewards[0].tolist()
    expected = [sum(gamma**k * r[t + k] for k in range(5 - t)) + gamma ** (5 - t) * last for t in range(5)]
    assert returns[0].tolist() == pytest.approx(expected)


@given(st.floats(-10, 10), st.floats(0, 0.99), unit)
def test_gae_of_a_constant_value_is_zero(value, gamma, lam):
    # V = c is the value of r = (1 − γ) c for ever: every δ vanishes, and so does every advantage, also where truncated
    constant = torch.full((2, 8), value, dtype=torch.float64)
    continues = torch.ones(2, 8, dtype=torch.bool)
    continues[0, 3] = continues[:, 7] = False
    advantages, returns = gae((1 - gamma) * constant, constant, constant, continues, gamma=gamma, lam=lam)
    torch.testing.assert_close(advantages, torch.zeros_like(advantages), atol=1e-12, rtol=0)
    torch.testing.assert_close(returns, constant)


def test_gae_of_a_constant_value_that_terminates():
    # at the terminal step δ = (1 − γ) c − c = −γ c, and each step before sees it times γλ
    gamma, lam, value = 0.9, 0.8, 2.0
    constant = torch.full((1, 3), value)
    following = torch.tensor([[value, value, 0.0]])
    advantages, _ = gae(
        (1 - gamma) * constant, constant, following, torch.tensor([[True, True, False]]), gamma=gamma, lam=lam
    )
    expected = [-gamma * value * (gamma * lam) ** k for k in (2, 1, 0)]
    assert advantages[0].tolist() == pytest.approx(expected, abs=1e-6)


@given(seeds, st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 3))
def test_gae_of_responses_ignores_nan_in_the_padding(seed, lengths, columns):
    rewards, values, _, _ = steps(seed, rows=len(lengths), width=6 + columns)
    mask = torch.arange(6 + columns) < torch.tensor(lengths)[:, None]
    poisoned_rewards, poisoned_values = (torch.where(mask, x, NAN).requires_grad_() for x in (rewards, values))
    advantages, returns = gae(
        poisoned_rewards,
        poisoned_values,
        following_values(poisoned_values, mask),
        continuing(mask),
        gamma=1.0,
        lam=0.95,
    )
    for b, n in enumerate(lengths):
        r, v = rewards[b : b + 1, :n], values[b : b + 1, :n]
        every = torch.ones_like(r, dtype=torch.bool)
        alone, _ = gae(r, v, following_values(v, every), continuing(every), gamma=1.0, lam=0.95)
        torch.testing.assert_close(advantages[b, :n].detach(), alone[0])
    torch.where(mask, advantages + returns, 0.0).sum().backward()
    for gradient in (poisoned_rewards.grad, poisoned_values.grad):
        assert gradient.isfinite().all()
        assert torch.equal(gradient[~mask], torch.zeros(int((~mask).sum()), dtype=torch.float64))


@given(seeds, st.permutations(range(4)), st.integers(1, 3))
def test_gae_treats_every_row_on_its_own(seed, order, cut):
    inputs = steps(seed, rows=4)
    advantages, _ = gae(*inputs, gamma=0.9, lam=0.9)
    assert torch.equal(gae(*(x[order] for x in inputs), gamma=0.9, lam=0.9)[0], advantages[order])
    parts = [gae(*part, gamma=0.9, lam=0.9)[0] for part in ([x[:cut] for x in inputs], [x[cut:] for x in inputs])]
    assert torch.equal(torch.cat(parts), advantages)


def test_gae_of_a_response_without_discount_is_reward_to_go_minus_value():
    # the score 5 arrives at the last token: with γ = λ = 1 every token's return is 5
    values = torch.tensor([[1.0, 2.0, 3.0, NAN]])
    mask = torch.tensor([[True, True, True, False]])
    rewards = torch.tensor([[0.0, 0.0, 5.0, 0.0]])
    advantages, returns = gae(rewards, values, following_values(values, mask), continuing(mask), gamma=1.0, lam=1.0)
    assert advantages[0, :3].tolist() == [4, 3, 2]
    assert returns[0, :3].tolist() == [5, 5, 5]


# following_values


def test_following_values_by_hand():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, NAN], [6.0, NAN, NAN], [NAN, NAN, NAN]])
    mask = torch.tensor([[True] * 3, [True, True, False], [True, False, False], [False] * 3])
    assert following_values(values, mask).tolist() == [[2, 3, 0], [5, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_following_values_of_single_tokens():
    assert following_values(torch.tensor([[7.0], [NAN]]), torch.tensor([[True], [False]])).tolist() == [[0], [0]]


def test_following_values_gradient_is_the_shift():
    values = torch.tensor([[1.0, 2.0, NAN]], requires_grad=True)
    following = following_values(values, torch.tensor([[True, True, False]]))
    (following * torch.tensor([[10.0, 100.0, 1000.0]])).sum().backward()
    assert values.grad.tolist() == [[0, 10, 0]]


# episode_totals


def test_episode_totals_by_hand():
    # first row: an episode of two steps (rewards 1, 2), one of one step (3), the beginning of a third (4, 5)
    # second row: one episode (1, 1, 1, 1, 1)
    rewards = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5])
    continues = torch.tensor([[True, False, False, True, True], [True] * 5])
    totals = episode_totals(discounted_returns(rewards, continues, gamma=1.0), continues)
    assert totals.tolist() == [[3, 3, 3, 9, 9], [5] * 5]
