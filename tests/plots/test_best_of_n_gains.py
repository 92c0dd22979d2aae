"""The figure of best-of-n: its curves, its axis, its headline."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from rlhf_lightning.evaluation.best_of_n import best_of_n_table
from rlhf_lightning.plots.figures.best_of_n import best_of_n_gains
from rlhf_lightning.plots.kit import style
from tests.plots.figure_text import overlapping_texts


def table(most, *, prompts=40, exploited=False):
    """Gold agrees with the proxy, or only up to a proxy of 1."""
    proxy = torch.randn(prompts, most, generator=torch.Generator().manual_seed(0))
    gold = 1 - (proxy - 1).abs() if exploited else 0.5 * proxy
    return best_of_n_table(proxy, {"proxy": proxy, "gold": gold})


@pytest.mark.parametrize(
    ("most", "prompts"), [(1, 5), (2, 40), (64, 40), (100, 1), (1024, 5)], ids=["one", "two", "64", "100", "1024"]
)
def test_no_text_overlaps_another_or_leaves_the_figure(most, prompts):
    assert overlapping_texts(best_of_n_gains(table(most, prompts=prompts), name="runs/quickstart/sft")) == []


def test_gains_are_drawn_against_kl_in_the_colours_of_proxy_and_gold():
    found = table(16)
    (axes,) = best_of_n_gains(found).axes
    for name, color in (("proxy", style.PROXY), ("gold", style.GOLD)):
        (line,) = [line for line in axes.lines if to_hex(line.get_color()) == color]
        np.testing.assert_allclose(line.get_xdata(), found["kl"])
        np.testing.assert_allclose(line.get_ydata(), found[f"{name}_gain"])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1\n0", "2\n0.2", "4\n0.6", "8\n1.2", "16\n1.8"]


def test_the_headline_says_where_gold_turned():
    heading = best_of_n_gains(table(64, prompts=400, exploited=True)).texts[0].get_text()
    assert heading.startswith("Best of 64: proxy +2.")
    assert heading.endswith("; gold is largest at n = 4")
    last = table(64).iloc[-1]
    heading = best_of_n_gains(table(64)).texts[0].get_text()
    assert heading == f"Best of 64: proxy +{last['proxy_gain']:.2f}, gold +{last['gold_gain']:.2f}"


def test_a_table_of_gold_alone_is_drawn():
    found = table(8)
    (axes,) = best_of_n_gains(found[[name for name in found if not name.startswith("proxy")]]).axes
    assert style.PROXY not in {to_hex(line.get_color()) for line in axes.lines}
