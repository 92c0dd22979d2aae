"""The table of best-of-n: which n it has, its means and its intervals."""

import math

import pytest
import torch
from scipy.stats import ttest_1samp

from rlhf_lightning.evaluation.best_of_n import best_of_n_table, sizes


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])]
)
def test_sizes_double_up_to_the_last(most, expected):
    assert list(sizes(most)) == expected


def test_gold_is_that_of_the_responses_that_the_proxy_selects():
    proxy = torch.tensor([[1.0, 3.0], [8.0, 6.0]])
    gold = torch.tensor([[5.0, 1.0], [2.0, 4.0]])
    table = best_of_n_table(proxy, {"proxy": proxy, "gold": gold})
    assert table["n"].tolist() == [1, 2]
    assert table["kl"].tolist() == pytest.approx([0, math.log(2) - 0.5])
    assert table["proxy"].tolist() == [4.5, 5.5]
    assert table["gold"].tolist() == [3.0, 1.5]
    assert table["gold_gain"].tolist() == [0.0, -1.5]


def test_intervals_are_students_over_prompts_and_gains_are_paired():
    generator = torch.Generator().manual_seed(0)
    level = 10 * torch.randn(30, 1, generator=generator)  # prompts differ far more than what n changes
    scores = level + torch.randn(30, 4, generator=generator)
    row = best_of_n_table(scores, {"proxy": scores}).iloc[-1]
    best, mean = scores.amax(-1), scores.mean(-1)
    for name, values in (("proxy", best), ("proxy_gain", best - mean)):
        interval = ttest_1samp(values.numpy(), 0).confidence_interval()
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((interval.low, interval.high), abs=1e-4)
    assert row["proxy_high"] - row["proxy_low"] > 5 * (row["proxy_gain_high"] - row["proxy_gain_low"])
