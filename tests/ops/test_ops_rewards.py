import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.ops.masking import sequence_sum
from rlhf_lightning.ops.rewards import kl_shaped_rewards, last_action_rewards

NAN = float("nan")

lengths_of_rows = st.lists(st.integers(0, 5), min_size=1, max_size=5)


def rollout(seed: int, lengths: list[int], width: int = 5):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    scores = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    kl = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    return scores, torch.where(mask, kl, NAN), mask


def shaped(scores, kl, mask, *, kl_coef):
    return kl_shaped_rewards(last_action_rewards(scores, mask), kl, mask, kl_coef=kl_coef)


def test_last_action_rewards_by_hand():
    rewards = last_action_rewards(
        torch.tensor([10.0, 20.0, 30.0, NAN]),
        torch.tensor([[True, True, False], [True, True, True], [True, False, False], [False, False, False]]),
    )
    assert rewards.tolist() == [[0, 10, 0], [0, 0, 20], [30, 0, 0], [0, 0, 0]]


def test_kl_shaped_rewards_keep_rewards_of_every_action():
    # β = 2: 1 − 2 · 0.5, 2 − 2 · 1.5; what the mask hides is 0
    rewards = kl_shaped_rewards(
        torch.tensor([[1.0, 2.0, NAN]]),
        torch.tensor([[0.5, 1.5, NAN]]),
        torch.tensor([[True, True, False]]),
        kl_coef=2.0,
    )
    assert rewards.tolist() == [[0, -1, 0]]


def test_kl_shaped_rewards_by_hand():
    # β = 0.5: −0.5 · 2 = −1, −0.5 · 4 + 10 = 8 | −0.5 · 6 + 20 = 17
    rewards = shaped(
        torch.tensor([10.0, 20.0]),
        torch.tensor([[2.0, 4.0, NAN], [6.0, NAN, NAN]]),
        torch.tensor([[True, True, False], [True, False, False]]),
        kl_coef=0.5,
    )
    assert rewards.tolist() == [[-1, 8, 0], [17, 0, 0]]


def test_kl_shaped_rewards_pay_the_score_in_the_last_column_of_a_full_row():
    rewards = shaped(torch.tensor([3.0]), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), kl_coef=1.0)
    assert rewards.tolist() == [[0, 3]]


def test_kl_shaped_rewards_of_a_row_without_actions_are_zero():
    rewards = shaped(torch.tensor([NAN]), torch.full((1, 3), NAN), torch.zeros(1, 3, dtype=torch.bool), kl_coef=0.1)
    assert rewards.tolist() == [[0, 0, 0]]


@given(st.integers(0, 2**32 - 1), lengths_of_rows, st.floats(0, 2))
def test_kl_shaped_rewards_add_up_to_the_score_minus_the_penalty(seed, lengths, kl_coef):
    scores, kl, mask = rollout(seed, lengths)
    totals = sequence_sum(shaped(scores, kl, mask, kl_coef=kl_coef), mask)
    for b, n in enumerate(lengths):
        expected = scores[b].item() - kl_coef * sum(kl[b, t].item() for t in range(n)) if n else 0.0
        assert totals[b].item() == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 2**32 - 1), lengths_of_rows, st.integers(1, 4))
def test_kl_shaped_rewards_ignore_padding(seed, lengths, columns):
    scores, kl, mask = rollout(seed, lengths)
    wide_kl = torch.cat([kl, torch.full((len(lengths), columns), NAN)], 1)
    wide_mask = torch.cat([mask, torch.zeros(len(lengths), columns, dtype=torch.bool)], 1)
    rewards = shaped(scores, wide_kl, wide_mask, kl_coef=0.3)
    assert torch.equal(rewards[:, :5], shaped(scores, kl, mask, kl_coef=0.3))
    assert torch.equal(rewards[:, 5:], torch.zeros(len(lengths), columns, dtype=torch.float64))


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_kl_shaped_rewards_without_penalty_are_the_score_at_the_last_action(seed, lengths):
    scores, kl, mask = rollout(seed, lengths)
    rewards = shaped(scores, kl, mask, kl_coef=0.0)
    assert torch.equal(rewards[range(len(lengths)), [n - 1 for n in lengths]], scores)
    assert int((rewards != 0).sum()) == len(lengths)


def test_kl_shaped_rewards_gradients_do_not_see_nan_in_the_padding():
    scores = torch.tensor([1.0, NAN], requires_grad=True)
    kl = torch.tensor([[0.1, 0.2, NAN], [NAN, NAN, NAN]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    shaped(scores, kl, mask, kl_coef=0.5).sum().backward()
    assert scores.grad.tolist() == [1, 0]
    assert kl.grad.tolist() == [[-0.5, -0.5, 0], [0, 0, 0]]
