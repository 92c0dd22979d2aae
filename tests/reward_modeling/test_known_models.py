"""What the losses of a reward model recover where the true model is known."""

import runpy
from pathlib import Path

import pytest
import torch

KNOWN = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "known_models.py"))
LISTWISE, ALL_PAIRS, ONE_PAIR = KNOWN["LISTWISE"], KNOWN["ALL_PAIRS"], KNOWN["ONE_PAIR"]
SEEDS = range(4)


@pytest.fixture(scope="module")
def errors():
    return [KNOWN["ranking_errors"](seed) for seed in SEEDS]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_linear_reward_is_recovered_from_bradley_terry_pairs(seed):
    assert KNOWN["linear_reward_correlation"](seed) > 0.97


def test_rankings_are_drawn_by_successive_choices():
    # worths 3, 2, 1, 1: the first place is shared 3 : 2 : 1 : 1; after the first item, the second 2 : 1 : 1
    scores = torch.tensor([3.0, 2.0, 1.0, 1.0]).log()
    drawn = KNOWN["draw_rankings"](scores, 20_000, torch.Generator().manual_seed(0))
    assert (drawn.sort(-1).values == torch.arange(4)).all()
    first = drawn[:, 0].bincount() / len(drawn)
    assert first.tolist() == pytest.approx([3 / 7, 2 / 7, 1 / 7, 1 / 7], abs=0.015)
    second = drawn[drawn[:, 0] == 0, 1].bincount() / (drawn[:, 0] == 0).sum()
    assert second.tolist() == pytest.approx([0, 1 / 2, 1 / 4, 1 / 4], abs=0.015)


def test_scores_are_recovered_from_plackett_luce_rankings(errors):
    assert max(float(one[LISTWISE].abs().max()) for one in errors) < 0.1


def test_rankings_say_more_than_one_pair_of_each(errors):
    for one in errors:
        assert (one[LISTWISE] ** 2).mean() < 0.7 * (one[ONE_PAIR] ** 2).mean()


def test_the_listwise_loss_needs_fewer_rankings_than_their_pairs():
    # exact, by enumeration: the listwise loss is the likelihood, and no estimator has less variance
    for seed in SEEDS:
        needed = KNOWN["rankings_needed"](KNOWN["true_scores"](seed)[0])
        assert needed[LISTWISE] == 1
        assert 1.05 < needed[ALL_PAIRS] < 1.2
        assert 3 < needed[ONE_PAIR] < 6


def test_errors_are_of_the_size_that_the_asymptotic_variance_says(errors):
    truth = KNOWN["true_scores"](0)[0]
    for name, (loss, count) in KNOWN["READINGS"].items():
        expected = KNOWN["asymptotic_variance"](truth, loss, count) / KNOWN["RANKINGS"]
        found = float((errors[0][name] ** 2).sum())
        # ten errors, one of which the others determine: χ² with 9 degrees of freedom is between 1.7 and 23.6 in 99 %
        assert 1.7 / 9 < found / expected < 23.6 / 9
