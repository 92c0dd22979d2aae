"""Normalizers against numpy, over one batch and over many."""

import numpy as np
import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.scaling import ClipScores, Log, MinMax, RunningZScore, Scaling, ZScore

VALUES = np.random.default_rng(1).normal(3.0, 2.0, 50)
BATCHES = np.split(VALUES, [1, 8, 9, 30])
"""Of 1, 7, 1, 21 and 20 scores."""


def of(scaling, values):
    return scaling(torch.tensor(values)).numpy()


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (ZScore(), lambda r: (r - np.mean(r)) / np.std(r)),
        (ZScore(center=False), lambda r: r / np.std(r)),
        (MinMax(), lambda r: (r - np.min(r)) / np.ptp(r)),
        (Log(), lambda r: np.sign(r) * np.log(1 + np.abs(r))),
        (ClipScores(low=-1.0, high=4.0), lambda r: np.clip(r, -1.0, 4.0)),
    ],
    ids=["z-score", "z-score without shift", "min-max", "log", "clip"],
)
def test_scaling_of_one_batch_is_that_of_numpy(scaling, expected):
    values = np.concatenate([VALUES, [-7.0, 0.0]])
    np.testing.assert_allclose(of(scaling, values), expected(values), rtol=1e-9, atol=1e-12)
    assert scaling.state_dict() == {}


@pytest.mark.parametrize("center", [True, False])
def test_running_moments_are_those_of_all_batches_so_far(center):
    scaling = RunningZScore(center=center)
    for number, batch in enumerate(BATCHES[1:], start=1):
        if number == 1:
            scaling.update(torch.tensor(BATCHES[0]))
        scaling.update(torch.tensor(batch))
        seen = np.concatenate(BATCHES[: number + 1])
        expected = (batch - np.mean(seen) if center else batch) / np.std(seen)
        np.testing.assert_allclose(of(scaling, batch), expected, rtol=1e-9, atol=1e-12)


def test_running_moments_do_not_depend_on_how_scores_are_cut_into_batches():
    parts, whole = RunningZScore(), RunningZScore()
    for batch in BATCHES:
        parts.update(torch.tensor(batch))
    whole.update(torch.tensor(VALUES))
    np.testing.assert_allclose(of(parts, VALUES), of(whole, VALUES), rtol=1e-9, atol=1e-12)


def test_running_moments_of_large_scores_in_float32_keep_their_precision():
    scaling, values = RunningZScore(), (10_000 + VALUES).astype(np.float32)
    for batch in np.split(values, 10):
        scaling.update(torch.tensor(batch))
    exact = (values.astype(np.float64) - np.mean(values, dtype=np.float64)) / np.std(values, dtype=np.float64)
    np.testing.assert_allclose(of(scaling, values), exact, atol=1e-6)


@pytest.mark.parametrize(("center", "expected"), [(True, [0.0, 0.0]), (False, [0.1, 0.1])])
def test_running_moments_of_equal_scores(center, expected):
    scaling, scores = RunningZScore(center=center), torch.tensor([0.1, 0.1])
    for _ in range(3):
        scaling.update(scores)
    torch.testing.assert_close(scaling(scores), torch.tensor(expected))


def test_scaling_by_running_moments_does_not_move_them():
    scaling = RunningZScore()
    scaling.update(torch.tensor(VALUES))
    before = scaling.state_dict()
    first = of(scaling, VALUES[:5])
    of(scaling, 100 * VALUES)
    np.testing.assert_array_equal(of(scaling, VALUES[:5]), first)
    assert all(torch.equal(before[name], value) for name, value in scaling.state_dict().items())


def test_running_moments_continue_from_a_checkpoint(tmp_path):
    whole, first, second = RunningZScore(), RunningZScore(), RunningZScore()
    for batch in BATCHES[:3]:
        whole.update(torch.tensor(batch))
        first.update(torch.tensor(batch))
    torch.save(first.state_dict(), tmp_path / "state")
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for batch in BATCHES[3:]:
        whole.update(torch.tensor(batch))
        second.update(torch.tensor(batch))
    assert np.array_equal(of(whole, VALUES), of(second, VALUES))


def test_state_is_a_copy():
    scaling = RunningZScore()
    scaling.update(torch.tensor([1.0, 2.0]))
    state = scaling.state_dict()
    scaling.update(torch.tensor([50.0]))
    assert state["mean"].item() == 1.5


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (5.0, -5.0), (float("nan"), 1.0)])
def test_bounds_must_be_in_order(low, high):
    with pytest.raises(UserError, match="ClipScores needs low below high, got low"):
        ClipScores(low, high)


def test_a_scaling_has_to_be_written():
    with pytest.raises(NotImplementedError):
        Scaling()(torch.zeros(1))
