"""Figures of arms of several seeds."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from rlhf_lightning import plots
from rlhf_lightning.intervals import student_interval
from rlhf_lightning.plots.kit import style
from rlhf_lightning.plots.kit.bands import curve
from rlhf_lightning.plots.kit.style import change_within, plus_minus
from rlhf_lightning.plots.measures import entries
from rlhf_lightning.plots.verdict import judge, judge_arm
from tests.plots.figure_text import overlapping_texts
from tests.plots.synthetic_arms import make_run, make_runs

OF_ARMS = (plots.learning_curves, plots.frontier, plots.dashboard)


def texts(figure):
    return [text.get_text() for text in figure.texts] + [text.get_text() for axes in figure.axes for text in axes.texts]


def lines_of(axes, color, *, thin):
    return [line for line in axes.lines if to_hex(line.get_color()) == color and (line.get_linewidth() < 1) == thin]


def test_runs_that_differ_in_the_seed_are_one_entry_with_a_marker():
    ppo, grpo = entries(make_runs(2, 3))
    assert [(ppo.name, len(ppo.runs), ppo.title), (grpo.name, len(grpo.runs), grpo.title)] == [
        ("ppo", 3, "● ppo"),
        ("grpo", 3, "■ grpo"),
    ]
    assert [entry.title for entry in entries(make_runs(2, 1))] == ["ppo-1", "grpo-1"]


def test_nine_arms_differ_in_colour_or_marker():
    looks = [(entry.color, entry.marker) for entry in entries(make_runs(9, 2))]
    assert len(set(looks)) == 9
    assert looks[0][0] == looks[8][0]


def test_arms_can_be_given_by_name():
    found = entries({"ours": [make_run(0, 1), make_run(0, 2)], "theirs": [make_run(1, 1)], "none": []})
    assert [(entry.name, len(entry.runs)) for entry in found] == [("ours", 2), ("theirs", 1)]


# -- mean and interval ---------------------------------------------------------------------------------------------


def test_the_band_is_student_s_interval_at_each_point():
    seeds = [pd.Series([0.0, value], index=[0.0, 10.0]) for value in (1.0, 2.0, 6.0)]
    joined = curve(seeds, least=3)
    mean, half = student_interval([1.0, 2.0, 6.0])
    assert joined.mean.to_dict() == {0.0: 0.0, 10.0: mean}
    assert (joined.low[10.0], joined.high[10.0]) == pytest.approx((mean - half, mean + half))
    assert joined.lasts == [1.0, 2.0, 6.0]


def test_seeds_that_were_measured_elsewhere_are_interpolated():
    seeds = [pd.Series([0.0, 4.0], index=[0.0, 4.0]), pd.Series([0.0, 8.0, 4.0], index=[0.0, 2.0, 4.0])]
    assert curve(seeds, least=2).mean.to_dict() == {0.0: 0.0, 2.0: (2.0 + 8.0) / 2, 4.0: 4.0}


def test_the_mean_ends_where_too_few_seeds_are_left():
    seeds = [pd.Series(1.0, index=np.arange(0.0, end + 1)) for end in (2, 4, 9)]
    assert curve(seeds, least=3).mean.index.max() == 2
    joined = curve(seeds, least=2)
    assert joined.mean.index.max() == 4
    assert joined.low.index.max() == 2  # no interval from two seeds: it would be a dozen times too wide to read
    assert [float(seed.index.max()) for seed in joined.ended_early] == [2, 4]


def test_one_seed_is_its_own_curve():
    series = pd.Series([1.0, 3.0], index=[0.0, 2.0])
    alone = curve([series], least=1)
    assert alone.mean is series
    assert not alone.several
    assert alone.low.empty


def test_many_points_are_thinned_and_the_ends_kept():
    seeds = [pd.Series(np.arange(1000.0), index=np.arange(1000.0) + shift) for shift in (0.0, 0.5)]
    mean = curve(seeds, least=2).mean
    assert len(mean) <= 200
    assert mean.index.min() <= 0.5 + 10
    assert mean.index.max() >= 999 - 10


# -- figures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", OF_ARMS)
@pytest.mark.parametrize(("arms", "seeds"), [(1, 3), (2, 2), (4, 10), (9, 3)])
def test_no_text_overlaps_another_or_leaves_the_figure(draw, arms, seeds):
    assert overlapping_texts(draw(make_runs(arms, seeds))) == []


def test_learning_curves_draw_every_seed_their_mean_and_how_it_ended():
    runs = make_runs(2, 5)
    figure = plots.learning_curves(runs)
    (axes,) = figure.axes
    for arm, color in enumerate(style.RUNS[:2]):
        assert len(lines_of(axes, color, thin=True)) == 5
        (mean,) = lines_of(axes, color, thin=False)
        expected = np.mean([run.series("eval/gold") for run in runs[5 * arm : 5 * arm + 5]], axis=0)
        np.testing.assert_allclose(mean.get_ydata(), expected)
        np.testing.assert_allclose(mean.get_xdata(), 64 * np.arange(0, 41, 10))
    ends = [0.81, 0.82, 0.83, 0.84, 0.85]  # 0.6 + 0.2 + 0.01 per seed
    assert f"{plus_minus(*student_interval(ends))}, n = 5" in texts(figure)
    assert {"● ppo", "■ grpo"} < set(texts(figure))


def test_a_single_seed_per_arm_is_drawn_without_bands_or_markers_in_its_name():
    figure = plots.learning_curves(make_runs(2, 1))
    assert {"ppo-1", "grpo-1"} < set(texts(figure))
    assert not figure.axes[0].collections
    assert "One dot per evaluation" in texts(figure)[1]


def test_a_seed_that_ended_early_is_marked_and_one_without_a_curve_is_named():
    runs = [*make_runs(1, 3), make_run(0, 4, stop=20), make_run(0, 5, stop=5)]
    figure = plots.learning_curves(runs)
    (cross,) = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert cross.get_xdata()[0] == 64 * 20
    note = figure.texts[1].get_text().replace("\n", " ")
    assert "×: a seed that ended early" in note
    assert "fewer than two: 1 of the 5 seeds of ppo" in note


def test_the_frontier_averages_at_the_same_kl():
    runs = [make_run(0, seed, shift=0.0) for seed in (1, 2, 3)]
    figure = plots.frontier(runs)
    (axes,) = figure.axes
    (mean,) = [line for line in axes.lines if line.get_linewidth() > 1 and len(line.get_xdata()) > 2]
    # gold is 0.6 + 0.2 KL / KL at the end, and that is 9, 10 and 11
    np.testing.assert_allclose(
        mean.get_ydata(), [0.6 + 0.2 * np.mean([x / end for end in (9, 10, 11) if x <= end]) for x in mean.get_xdata()]
    )
    assert mean.get_xdata().max() == 9  # as far as three of three came


def test_any_metric_can_be_drawn_by_its_name():
    figure = plots.learning_curves(make_runs(2, 2), metric="eval/win_rate")
    assert figure.texts[0].get_text() == "Win rate by sampled responses"
    (mean,) = lines_of(figure.axes[0], style.RUNS[1], thin=False)
    np.testing.assert_allclose(mean.get_ydata(), 0.5 + 0.3 * np.arange(5) / 4)
    assert plots.frontier(make_runs(2, 2), metric="eval/win_rate").texts[0].get_text().startswith("Win rate at each")


def test_the_dashboard_counts_arms_and_runs():
    assert plots.dashboard(make_runs(3, 4)).texts[0].get_text() == "3 arms, 12 policy runs"
    alone = plots.dashboard(make_runs(1, 4))
    assert alone.texts[0].get_text() == "ppo"
    gold = next(axes for axes in alone.axes if "Gold reward" in [text.get_text() for text in axes.texts])
    assert len(lines_of(gold, style.GOLD, thin=True)) == 4


# -- verdict -------------------------------------------------------------------------------------------------------


def test_the_verdict_of_an_arm_names_the_seeds_that_went_another_way():
    runs = [make_run(0, 1), make_run(0, 2), make_run(0, 3, shift=-0.25)]
    told = judge_arm(runs)
    assert told.outcome == "improved"
    ends = [0.81, 0.82, 0.55]
    assert told.headline == f"Gold reward: 0.60 → {plus_minus(*student_interval(ends))}, mean of 3 seeds"
    assert told.sentences[0] == "In 2 of 3 seeds the reward rose and held to the end."
    assert told.sentences[1].startswith("In seed 3 ")
    assert told.sentences[-1] == "The seeds ended between 0.55 and 0.82."
    assert judge_arm(runs[:2]).sentences[0].startswith("In both seeds ")


def test_the_verdict_of_one_seed_is_the_run_s():
    run = make_run(0, 1)
    assert judge_arm([run]) == judge(run)


def test_the_verdict_of_seeds_without_evaluations_is_that_it_is_too_early():
    told = judge_arm([make_run(0, 1, stop=5), make_run(0, 2, stop=5)])
    assert (told.outcome, told.headline) == ("unmeasured", "Too early to tell")


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (0.81, 0.0654, "0.810 ± 0.065"),
        (-12.34, 1.2, "−12.3 ± 1.2"),
        (487.2, 13.1, "487 ± 13"),
        (0.5, 1e-9, "0.5000 ± 0.0000"),
        (0.5, 0.0, "0.50"),
        (0.5, math.nan, "0.50"),
    ],
)
def test_plus_minus_has_two_digits_of_the_half_width(mean, half, text):
    assert plus_minus(mean, half) == text


def test_changes_have_signs():
    assert plus_minus(0.02, 0.011, sign=True) == "+0.020 ± 0.011"
    assert plus_minus(-0.02, math.nan, sign=True) == "−0.02"
    assert change_within(0.0651, 0.012, 0.118) == "+0.065 [0.012, 0.118]"
    assert change_within(1.0, 1.0, 1.0) == "+1.00 [1.00, 1.00]"
