"""Running moments against numpy over everything seen, and what is scaled by them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.models.moments import ObservationNormalizer, RewardScale, RunningMoments

VALUES = torch.from_numpy(np.random.default_rng(0).normal(3.0, 5.0, (40, 3)))


@given(st.lists(st.integers(1, 39), max_size=4, unique=True).map(sorted))
def test_moments_are_those_of_all_values_however_they_are_cut(cuts):
    moments = RunningMoments(3)
    for part in VALUES.tensor_split(cuts):
        moments.update(part)
    assert moments.count == 40
    np.testing.assert_allclose(moments.mean, VALUES.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, VALUES.numpy().var(0), rtol=1e-12)


def test_moments_of_numbers_far_from_zero_keep_their_digits():
    moments = RunningMoments()
    for part in (1e8 + VALUES[:, 0]).split(7):
        moments.update(part)
    np.testing.assert_allclose(moments.variance, VALUES[:, 0].numpy().var(), rtol=1e-6)


def test_moments_are_zero_and_one_before_any_value():
    moments = RunningMoments(2)
    assert moments.mean.tolist() == [0, 0]
    assert moments.variance.tolist() == [1, 1]
    assert set(moments.state_dict()) == {"mean", "variance", "count"}


def test_observations_are_shifted_scaled_and_bounded():
    normalizer = ObservationNormalizer(1)
    normalizer.update(torch.tensor([[[1.0], [3.0]]]))  # mean 2, variance 1
    observations = torch.tensor([[2.0], [2.5], [14.0], [-14.0]])
    normalized = normalizer(observations)
    torch.testing.assert_close(normalized, torch.tensor([[0.0], [0.5], [10.0], [-10.0]]))
    assert normalizer(observations.double()).dtype == torch.float64
    assert normalizer.moments.count == 2  # reading moves nothing


def test_observations_are_read_as_they_are_at_first():
    torch.testing.assert_close(ObservationNormalizer(3)(VALUES / 5), VALUES / 5)


def discounted_by_loop(rewards, ended, *, gamma):
    """R of each environment by itself, over all its steps."""
    returns = np.zeros_like(rewards)
    for row in range(len(rewards)):
        running = 0.0
        for t in range(rewards.shape[1]):
            running = gamma * running + rewards[row, t]
            returns[row, t] = running
            running = 0.0 if ended[row, t] else running
    return returns


def test_rewards_are_divided_by_the_deviation_that_was_known_before():
    generator = np.random.default_rng(1)
    rewards, ended = generator.normal(2, 3, (3, 15)), generator.random((3, 15)) < 0.3
    returns = discounted_by_loop(rewards, ended, gamma=0.9)
    scale = RewardScale(3, gamma=0.9)
    divisors = []
    for part in (slice(0, 5), slice(5, 10), slice(10, 15)):
        new = torch.from_numpy(rewards[:, part])
        discounted = scale.extend(new, torch.from_numpy(ended[:, part]))
        np.testing.assert_allclose(discounted, returns[:, part], rtol=1e-12)
        divisors.append((new / scale.scaled(new, discounted)).numpy())
        scale.update(discounted)
    known = (returns[:, :5], returns[:, :5], returns[:, :10])  # the first rollout is scaled by its own
    for divisor, before in zip(divisors, known, strict=True):
        np.testing.assert_allclose(divisor, before.std(), rtol=1e-6)


def test_scale_that_is_restored_goes_on_as_if_nothing_had_happened():
    rewards, ended = (
        torch.rand(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        torch.zeros(2, 8),
    )
    scale = RewardScale(2, gamma=0.9)
    scale.update(scale.extend(rewards, ended.bool()))
    other = RewardScale(2, gamma=0.9)
    other.load_state_dict(scale.state_dict())
    results = [s.scaled(rewards, s.extend(rewards, ended.bool())) for s in (scale, other)]
    assert torch.equal(*results)
    assert results[0].mean() == pytest.approx((rewards / scale.variance.sqrt()).mean().item(), rel=1e-6)
