"""Win rates between two policies, and what length has to do with them, by hand."""

import math

import pytest
import torch

from rlhf_lightning.evaluation.duel import duel
from rlhf_lightning.intervals import clustered_wilson_interval, student_interval, wilson_interval


def words(*counts, word="word"):
    """One response of so many words to each prompt."""
    return [[" ".join([word] * count)] for count in counts]


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_wins_and_ties_with_wilsons_interval_over_prompts():
    found = duel(column(1, 2, 3, 4), column(0, 2, 5, 1), words(1, 2, 3, 4), words(5, 6, 7, 8))
    assert found.outcomes.flatten().tolist() == [1.0, 0.5, 0.0, 1.0]
    assert (found.win_rate.value, found.win_rate.pairs) == (2.5 / 4, 4)
    assert (found.win_rate.low, found.win_rate.high) == wilson_interval(2.5, 4)
    assert found.difference == student_interval([1.0, 0.0, -2.0, 3.0])


def test_the_same_response_ties_whatever_rounding_says():
    found = duel(column(1.0, 1.0), column(1.0 + 1e-9, 0.5), [["a b"], ["a b"]], [["a b"], ["a c"]])
    assert found.outcomes.flatten().tolist() == [0.5, 1.0]


def test_several_responses_to_a_prompt_are_one_cluster():
    scores = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    found = duel(scores, torch.full((3, 2), 0.5), [["a", "b"]] * 3, [["c", "d"]] * 3)
    assert (found.win_rate.low, found.win_rate.high) == clustered_wilson_interval([[1, 1], [1, 0], [0, 0]])
    assert found.difference == student_interval([0.5, 0.0, -0.5])


def test_the_longer_response_wins_or_not_whoever_gave_it():
    """Longer: B, which loses; A, which ties; A, which wins; neither."""
    found = duel(column(1, 2, 3, 9), column(0, 2, 1, 1), words(2, 9, 9, 4), words(8, 3, 5, 4))
    assert (found.longer_wins.value, found.longer_wins.pairs) == ((0 + 0.5 + 1) / 3, 3)


def test_pairs_of_about_equal_length_lack_a_tenth_at_most():
    """9 of 10 words are enough, 8 are not, and neither are 1 of 2."""
    found = duel(column(1, 1, 1, 0), column(0, 0, 0, 1), words(10, 8, 1, 3), words(9, 10, 2, 3, word="other"))
    assert (found.win_rate_same_length.value, found.win_rate_same_length.pairs) == (0.5, 2)


def test_a_share_of_no_pairs_is_no_number():
    found = duel(column(1, 2), column(2, 1), words(3, 3), words(3, 3))
    assert found.longer_wins.pairs == 0
    assert math.isnan(found.longer_wins.value)
    assert found.win_rate_same_length.value == pytest.approx(0.5)


def test_swapping_the_policies_mirrors_the_win_rate():
    generator = torch.Generator().manual_seed(1)
    scores, others = torch.randint(4, (2, 12, 3), generator=generator).double()
    groups = [[f"a{i}{j}" for j in range(3)] for i in range(12)]
    other_groups = [[f"b{i}{j}" for j in range(3)] for i in range(12)]
    one, other = duel(scores, others, groups, other_groups), duel(others, scores, other_groups, groups)
    assert one.win_rate.value == pytest.approx(1 - other.win_rate.value)
    assert one.win_rate.low == pytest.approx(1 - other.win_rate.high)
