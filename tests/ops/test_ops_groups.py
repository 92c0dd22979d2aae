import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.ops.groups import (
    best_of_group,
    group_advantages,
    groups_that_differ,
    leave_one_out_advantages,
    overlong_penalty,
)

NAN = float("nan")

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


@st.composite
def grouped(draw, min_group_size: int = 2):
    """Scores as a list of groups."""
    size = draw(st.integers(min_group_size, 5))
    return draw(st.lists(st.lists(numbers, min_size=size, max_size=size), min_size=1, max_size=4))


def rows(groups: list[list[float]]) -> torch.Tensor:
    return torch.tensor([score for group in groups for score in group], dtype=torch.float64)


def rloo(groups):
    return leave_one_out_advantages(rows(groups), group_size=len(groups[0]))


def grpo(groups, *, normalize_std: bool, eps: float = 1e-4):
    return group_advantages(rows(groups), group_size=len(groups[0]), normalize_std=normalize_std, eps=eps)


# leave_one_out_advantages


def test_leave_one_out_advantages_by_hand():
    # 1 − (2 + 6)/2, 2 − (1 + 6)/2, 6 − (1 + 2)/2; then 0 − 4 and 4 − 0 in groups of two
    assert rloo([[1, 2, 6]]).tolist() == pytest.approx([-3, -1.5, 4.5])
    assert rloo([[0, 4], [1, 1]]).tolist() == [-4, 4, 0, 0]


@given(grouped())
def test_leave_one_out_advantages_against_a_loop(groups):
    expected = [
        score - statistics.fmean(group[:i] + group[i + 1 :]) for group in groups for i, score in enumerate(group)
    ]
    assert rloo(groups).tolist() == pytest.approx(expected, abs=1e-9)


# group_advantages


def test_group_advantages_by_hand():
    # mean 3, deviations −2, −1, 3; sample variance (4 + 1 + 9) / 2 = 7
    assert grpo([[1, 2, 6]], normalize_std=False).tolist() == pytest.approx([-2, -1, 3])
    expected = [x / (math.sqrt(7) + 0.5) for x in (-2, -1, 3)]
    assert grpo([[1, 2, 6]], normalize_std=True, eps=0.5).tolist() == pytest.approx(expected)
    # one right answer in four: deviations 3/4 and −1/4, sample variance (9 + 3)/16 / 3 = 1/4
    assert grpo([[1, 0, 0, 0]], normalize_std=True, eps=0.0).tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5])


@given(grouped(), st.booleans(), st.floats(1e-6, 1))
def test_group_advantages_against_a_loop(groups, normalize_std, eps):
    expected = []
    for group in groups:
        scale = statistics.stdev(group) + eps if normalize_std else 1.0
        expected += [(score - statistics.fmean(group)) / scale for score in group]
    # a relative error of the mean is divided by the spread, which may be as small as ε
    assert grpo(groups, normalize_std=normalize_std, eps=eps).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(grouped())
def test_group_advantages_without_std_are_leave_one_out_times_one_minus_one_over_g(groups):
    size = len(groups[0])
    torch.testing.assert_close(grpo(groups, normalize_std=False), rloo(groups) * (1 - 1 / size))


ADVANTAGES = [
    rloo,
    lambda groups: grpo(groups, normalize_std=False),
    lambda groups: grpo(groups, normalize_std=True),
]


@pytest.mark.parametrize("advantages", ADVANTAGES)
@given(grouped())
def test_advantages_sum_to_zero_in_every_group(advantages, groups):
    sums = advantages(groups).view(len(groups), -1).sum(-1)
    assert sums.tolist() == pytest.approx([0] * len(groups), abs=1e-8)


@pytest.mark.parametrize("advantages", ADVANTAGES)
@given(grouped(), numbers)
def test_advantages_do_not_see_what_a_whole_group_is_given(advantages, groups, bonus):
    shifted = [[score + bonus for score in groups[0]], *groups[1:]]
    torch.testing.assert_close(advantages(shifted), advantages(groups), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("advantages", ADVANTAGES)
@given(grouped(), st.randoms(use_true_random=False))
def test_advantages_follow_their_scores(advantages, groups, random):
    orders = [random.sample(range(len(group)), len(group)) for group in groups]
    shuffled = [[group[i] for i in order] for group, order in zip(groups, orders, strict=True)]
    before, after = (advantages(g).view(len(groups), -1) for g in (groups, shuffled))
    expected = torch.stack([row[order] for row, order in zip(before, orders, strict=True)])
    torch.testing.assert_close(after, expected, rtol=1e-6, atol=1e-8)
    # and groups are on their own
    assert torch.equal(advantages(groups[::-1]).view(len(groups), -1), before.flip(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(st.floats(-1e4, 1e4), st.integers(2, 7))
def test_equal_scores_have_no_advantage_at_all(dtype, score, size):
    # a mean that rounds would give 1e-8 / (1e-8 + ε)
    scores = torch.full((size,), score, dtype=dtype)
    for normalize_std in (False, True):
        advantages = group_advantages(scores, group_size=size, normalize_std=normalize_std, eps=1e-12)
        assert advantages.tolist() == [0] * size
        assert advantages.dtype == dtype
    assert leave_one_out_advantages(scores, group_size=size).tolist() == [0] * size


@pytest.mark.parametrize("size", [1e19, 3e38])
def test_group_advantages_of_huge_scores(size):
    # one score in four: deviations 3/4 and −1/4 of it, standard deviation 1/2 of it, as for a score of 1
    scores = torch.tensor([size, 0, 0, 0, 1.0, 0, 0, 0])
    advantages = group_advantages(scores, group_size=4, normalize_std=True, eps=1e-12)
    assert advantages.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5] * 2)


def test_a_broken_score_stays_in_its_group():
    scores = torch.tensor([NAN, 1.0, 0.0, 2.0])
    for advantages in (
        leave_one_out_advantages(scores, group_size=2),
        group_advantages(scores, group_size=2, normalize_std=True, eps=1e-4),
        group_advantages(scores, group_size=2, normalize_std=False, eps=1e-4),
    ):
        assert advantages.isnan().tolist() == [True, True, False, False]


@pytest.mark.parametrize("normalize_std", [False, True])
def test_scores_that_do_not_fill_their_groups_are_refused(normalize_std):
    with pytest.raises(RuntimeError, match="invalid for input of size 5"):
        group_advantages(torch.zeros(5), group_size=2, normalize_std=normalize_std, eps=1e-4)


# best_of_group


def test_best_of_group_by_hand():
    scores = torch.tensor([1.0, 3.0, 2.0, -5.0, -6.0, -4.0])
    assert best_of_group(scores, group_size=3).tolist() == [1, 5]
    assert best_of_group(scores, group_size=2).tolist() == [1, 2, 5]
    assert best_of_group(scores, group_size=6).tolist() == [1]


@given(grouped(min_group_size=1))
def test_best_of_group_against_a_loop(groups):
    size = len(groups[0])
    expected = [i * size + group.index(max(group)) for i, group in enumerate(groups)]
    assert best_of_group(rows(groups), group_size=size).tolist() == expected


@given(st.integers(1, 40), st.integers(0, 39))
def test_best_of_group_is_the_first_on_ties(size, first):
    scores = torch.zeros(2, size)
    scores[1, min(first, size - 1) :] = 1.0
    assert best_of_group(scores.view(-1), group_size=size).tolist() == [0, size + min(first, size - 1)]


def test_best_of_group_is_the_first_within_the_tolerance():
    scores = torch.tensor([0.5, 1.0, 1.0 + 1e-6, -1.0, -1.0 + 1e-6, -2.0])
    assert best_of_group(scores, group_size=3).tolist() == [2, 4]
    assert best_of_group(scores, group_size=3, tolerance=1e-5).tolist() == [1, 3]
    assert best_of_group(scores, group_size=3, tolerance=0.6).tolist() == [0, 3]


# groups_that_differ


def test_groups_that_differ_by_hand():
    scores = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    assert groups_that_differ(scores, group_size=2).tolist() == [False, False, True, True, False, False]
    assert groups_that_differ(scores, group_size=3).tolist() == [False] * 6
    assert groups_that_differ(scores, group_size=6).tolist() == [True] * 6
    assert groups_that_differ(scores, group_size=1).tolist() == [False] * 6


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2**-23), (torch.float64, 2**-52)])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_scores_that_differ_by_rounding_are_equal(dtype, rounding, size):
    # 1 and its neighbours in the first two groups, at most 3 units in the last place apart; 12 units in the third
    units = torch.tensor([0, 1, 3, 0, 2, 2, 0, 0, 12], dtype=torch.float64)
    scores = (size * (1 + units * rounding)).to(dtype)
    differ = [False] * 6 + [True] * 3
    assert groups_that_differ(scores, group_size=3).tolist() == differ
    for advantages in (
        group_advantages(scores, group_size=3, normalize_std=True, eps=1e-4),
        leave_one_out_advantages(scores, group_size=3),
    ):
        assert (advantages != 0).tolist() == differ


@given(st.integers(1, 4).flatmap(lambda g: st.lists(st.lists(st.integers(0, 1), min_size=g, max_size=g), min_size=1)))
def test_groups_that_differ_are_those_with_an_advantage(groups):
    differ = groups_that_differ(rows(groups), group_size=len(groups[0]))
    assert differ.tolist() == [len(set(group)) > 1 for group in groups for _ in group]
    assert differ.tolist() == [any(grpo([group], normalize_std=False) != 0) for group in groups for _ in group]


# overlong_penalty


def test_overlong_penalty_by_hand():
    # 10 tokens, of which the last 4 cost a quarter each
    lengths = torch.tensor([0, 1, 6, 7, 8, 9, 10, 11, 1000])
    penalty = overlong_penalty(lengths, max_length=10, cache_length=4)
    assert penalty.tolist() == [0, 0, 0, -0.25, -0.5, -0.75, -1, -1, -1]


@given(st.lists(st.integers(0, 60), min_size=1), st.integers(1, 40), st.integers(1, 40))
def test_overlong_penalty_against_its_cases(lengths, max_length, cache_length):
    def case(length: int) -> float:
        if length <= max_length - cache_length:
            return 0.0
        if length <= max_length:
            return ((max_length - cache_length) - length) / cache_length
        return -1.0

    penalty = overlong_penalty(torch.tensor(lengths), max_length=max_length, cache_length=cache_length)
    assert penalty.tolist() == pytest.approx([case(length) for length in lengths])
