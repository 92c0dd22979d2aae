"""The slips of the demonstrations: where they fall, how often, and their exact entropy."""

import math
import random
from collections import Counter

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.tasks.arithmetic import Arithmetic
from rlhf_lightning.tasks.arithmetic.problems import Problem


def by_hand(share):
    """Every response to ``3 8 5`` with its probability: one of two sums is off, by one of two errors."""
    slips = ("3 10 15", "3 12 17", "3 11 15", "3 11 17")
    return {"3 11 16": 1 - share, **dict.fromkeys(slips, share / 4)}


def test_responses_have_the_stated_probabilities():
    rng, draws = random.Random(0), 20000
    counts = Counter(Problem((3, 8, 5)).demonstrate(0.4, rng) for _ in range(draws))
    expected = by_hand(0.4)
    assert set(counts) == set(expected)
    for text, probability in expected.items():
        assert abs(counts[text] / draws - probability) < 4.5 * math.sqrt(probability * (1 - probability) / draws)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_entropy_equals_enumeration(share):
    expected = -sum(p * math.log(p) for p in by_hand(share).values() if p > 0)
    assert Problem((3, 8, 5)).entropy(share) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("modulus", [None, 3])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_slip_always_ends_in_a_wrong_answer(share, modulus):
    problem, rng = Problem((2, 4, 1, 7), modulus), random.Random(0)
    right = str(problem.sums()[-1])
    answers = {problem.demonstrate(share, rng).split()[-1] for _ in range(200)}
    assert (answers == {right}) if share == 0 else (right not in answers and len(answers) == 2)


def test_no_slip_with_a_modulus_arises_in_two_ways():
    problem = Problem((2, 4, 1, 7), modulus=3)
    responses = [problem.sums(), *(problem.sums(place, error) for place in (1, 2, 3) for error in (-1, 1))]
    assert len(set(responses)) == 7


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_slip_share_is_checked(share):
    with pytest.raises(UserError, match=r"slip_share is .*; expected a share between 0 and 1"):
        Arithmetic(slip_share=share)
