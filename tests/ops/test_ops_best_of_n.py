"""Best-of-n against the enumeration of all subsets, a simulation, and the exact KL of a small distribution."""

import math
from itertools import combinations

import pytest
import torch

from rlhf_lightning.ops.best_of_n import best_of_n, best_of_n_kl


def by_enumeration(scores, values, n):
    """Mean over all subsets; of the tied best ones of a subset, the mean of their values."""
    total = 0.0
    subsets = list(combinations(range(len(scores)), n))
    for subset in subsets:
        best = max(scores[i] for i in subset)
        tied = [values[i] for i in subset if scores[i] == best]
        total += sum(tied) / len(tied)
    return total / len(subsets)


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_best_of_n_is_the_mean_over_all_subsets(n, levels):
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (5, 7), generator=generator).float()
    values = torch.randn(5, 7, generator=generator)
    expected = [by_enumeration(s, v, n) for s, v in zip(scores.tolist(), values.tolist(), strict=True)]
    assert best_of_n(scores, values, n=n).tolist() == pytest.approx(expected, abs=1e-6)


def test_best_of_one_is_the_mean_and_best_of_all_is_the_best():
    scores, values = torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([[3.0, 1.0, 8.0]])
    assert best_of_n(scores, values, n=1).item() == pytest.approx(4.0)
    assert best_of_n(scores, values, n=2).item() == pytest.approx((1 + 1 + 8) / 3)  # {.1,.9}, {.9,.5}, {.1,.5}
    assert best_of_n(scores, values, n=3).item() == 1.0


def test_tied_responses_share_what_one_of_them_would_get():
    """Of {a = b > c}, n = 2: {a, b} gives ½ (5 + 1), {a, c} gives 5, {b, c} gives 1."""
    scores, values = torch.tensor([[2.0, 2.0, 0.0]]), torch.tensor([[5.0, 1.0, 70.0]])
    assert best_of_n(scores, values, n=2).item() == pytest.approx(3.0)


def test_equal_scores_give_the_mean_whatever_n_is():
    values = torch.arange(6.0)[None]
    for n in (1, 3, 6):
        assert best_of_n(torch.zeros(1, 6), values, n=n).item() == pytest.approx(2.5)


def test_it_does_not_depend_on_the_order_of_the_responses():
    generator = torch.Generator().manual_seed(3)
    scores, values = torch.randn(2, 4, 64, generator=generator)
    order = torch.randperm(64, generator=generator)
    torch.testing.assert_close(best_of_n(scores[:, order], values[:, order], n=16), best_of_n(scores, values, n=16))


def test_large_samples_stay_exact():
    """The mean of the largest of n uniform numbers is n / (n + 1); of the values 1 … N it is n (N + 1) / (n + 1)."""
    scores = torch.arange(1, 2001, dtype=torch.float64)[None]
    for n in (1, 10, 1000, 1999, 2000):
        assert best_of_n(scores, scores, n=n).item() == pytest.approx(n * 2001 / (n + 1), rel=1e-12)


def test_it_is_unbiased_where_taking_the_first_n_is_noisier():
    """Scores are uniform, values score²: the best of 4 has E[max²] = 4 / 6."""
    generator = torch.Generator().manual_seed(5)
    scores = torch.rand(20_000, 8, generator=generator, dtype=torch.float64)
    all_subsets = best_of_n(scores, scores**2, n=4)
    first_four = (scores[:, :4].amax(-1)) ** 2
    error = all_subsets.std().item() / math.sqrt(len(scores))
    assert abs(all_subsets.mean().item() - 4 / 6) < 4 * error
    assert all_subsets.var() < 0.8 * first_four.var()


def test_kl_is_that_of_the_best_of_n_of_many_equally_likely_responses():
    """Of R responses with scores in order, the r-th is the best of n (with replacement) with ((r/R)ⁿ − ((r−1)/R)ⁿ)."""
    edges = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    for n in (1, 2, 8, 64):
        share = (edges**n).diff()
        kl = (share * (share * 100_000).clamp(min=1e-300).log()).sum().item()
        assert best_of_n_kl(n) == pytest.approx(kl, abs=1e-3)


def test_kl_bounds_that_of_responses_that_share_scores():
    """Of two equally likely responses the better one is the best of n with 1 − 2⁻ⁿ."""
    for n in (2, 4, 16):
        better = 1 - 0.5**n
        kl = better * math.log(2 * better) + (1 - better) * math.log(2 * (1 - better))
        assert kl < best_of_n_kl(n)
