"""Every reading against values that were worked out by hand, or against data made from known parameters."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.readings import READINGS
from rlhf_lightning.experiment.readings.frontier import fit_scaling_law, hypervolume
from rlhf_lightning.experiment.readings.reading import MissingError
from rlhf_lightning.records.metrics import Description, Experience
from rlhf_lightning.records.runs import Run

KL = "eval/kl_ref_sequence"


def run_of(axis="iteration", *, at=None, experience=None, **columns):
    """A run that logged these metrics; a name's first underscore is its slash."""
    named = {name.replace("_", "/", 1): values for name, values in columns.items()}
    count = len(next(iter(named.values())))
    table = pd.DataFrame({axis: range(count) if at is None else at, **named}).astype({axis: int})
    description = Description("policy", "PPO", experience)
    return Run(Path("runs/x"), "x", table, description, done=True)


def read(name, run, metric="eval/score", **keys):
    return READINGS[name](**keys).value(run, metric)


NAN = math.nan


def test_last_is_the_last_value_that_was_logged():
    assert read("last", run_of(eval_score=[1.0, 5.0, 3.0, NAN])) == 3.0


@pytest.mark.parametrize(("count", "mean"), [(1, 4.0), (2, 3.5), (3, 3.0)])
def test_mean_of_last_passes_over_rows_without_the_metric(count, mean):
    run = run_of(eval_score=[9.0, 2.0, NAN, 3.0, 4.0])
    assert read("mean_of_last", run, count=count) == mean


def test_mean_of_last_of_more_than_there_are_is_missing():
    with pytest.raises(MissingError, match="has logged eval/score 2 times; expected at least 3"):
        read("mean_of_last", run_of(eval_score=[1.0, 2.0]), count=3)


def test_mean_over_experience_weighs_by_what_was_sampled():
    """Samples 0, 10, 40: (½·(0 + 2)·10 + ½·(2 + 4)·30) / 40 = (10 + 90) / 40."""
    columns = {"eval_score": [0.0, 2.0, 4.0], "samples": [NAN, 10.0, 40.0]}
    counted = run_of(experience=Experience("sampled responses", counter="samples"), **columns)
    assert read("mean_over_experience", counted) == 2.5
    assert read("mean_over_experience", run_of(**columns)) == 2.0  # by iteration: (1 + 3) / 2


def test_mean_over_experience_does_not_depend_on_how_often_a_straight_line_is_evaluated():
    often = run_of("step", at=range(0, 101, 5), eval_score=np.linspace(1, 3, 21))
    seldom = run_of("step", at=[0, 35, 100], eval_score=[1.0, 1.7, 3.0])
    assert read("mean_over_experience", often) == pytest.approx(2.0)
    assert read("mean_over_experience", seldom) == pytest.approx(2.0)


def test_share_below_counts_the_limit_itself_and_only_rows_with_a_value():
    run = run_of(trust_kl=[0.01, 0.015, 0.0151, NAN, 0.0])
    assert read("share_below", run, "trust/kl", limit=0.015) == 0.75


def test_drop_from_peak():
    assert read("drop_from_peak", run_of(eval_score=[1.0, 4.0, 2.5])) == 1.5
    assert read("drop_from_peak", run_of(eval_score=[1.0, 2.0, 4.0])) == 0.0


def test_drop_from_peak_of_pure_noise_is_above_zero_and_the_change_since_another_peak_is_not():
    generator = np.random.default_rng(0)
    drops, changes = [], []
    for _ in range(400):
        run = run_of(eval_score=generator.normal(size=20), eval_other=generator.normal(size=20))
        drops.append(read("drop_from_peak", run))
        changes.append(READINGS["change_since_peak_of"]("eval/other").value(run, "eval/score"))
    assert np.mean(drops) > 1.5  # the largest of 20 normal values is 1.87 above their mean
    assert abs(np.mean(changes)) < 3 * np.std(changes) / 20


def test_change_since_the_peak_of_another_metric():
    """Gold is largest at iteration 2 among the rows that have both; the proxy went from 3 to 7 since then."""
    run = run_of(eval_score=[1.0, NAN, 3.0, 7.0], eval_gold=[0.0, 9.0, 2.0, 1.0])
    assert READINGS["change_since_peak_of"]("eval/gold").value(run, "eval/score") == 4.0


def test_value_at_the_peak_of_another_metric_is_not_biased_as_its_own_peak_is():
    generator = np.random.default_rng(0)
    found = {"eval/other": [], "eval/score": []}
    for _ in range(400):
        run = run_of(eval_score=generator.normal(size=20), eval_other=generator.normal(size=20))
        for metric, values in found.items():
            values.append(READINGS["at_peak_of"](metric).value(run, "eval/score"))
    assert abs(np.mean(found["eval/other"])) < 3 / 20
    assert np.mean(found["eval/score"]) > 1.7  # the largest of 20 normal values is 1.87 on average


def test_value_at_a_peak_by_hand():
    run = run_of(eval_score=[1.0, NAN, 3.0, 7.0], eval_gold=[0.0, 9.0, 2.0, 1.0])
    assert READINGS["at_peak_of"]("eval/gold").value(run, "eval/score") == 3.0


def test_relative_distance_of_the_last_fifth():
    """Of ten values the last two count: (|4 − 5| + |6.5 − 5|) / 2 / 5."""
    run = run_of(eval_kl=[0.0] * 8 + [4.0, 6.5])
    assert read("relative_distance", run, "eval/kl", target=5) == pytest.approx(0.25)
    assert read("relative_distance", run, "eval/kl", target=5, over_last=1) == pytest.approx((8 * 5 + 2.5) / 10 / 5)


def test_relative_distance_rounds_the_number_of_values_up():
    run = run_of(eval_kl=[9.0, 1.0, 3.0])  # a fifth of three values is one
    assert read("relative_distance", run, "eval/kl", target=2) == pytest.approx(0.5)
    assert read("relative_distance", run, "eval/kl", target=2, over_last=0.4) == pytest.approx(0.5)  # 1.2 are two


# -- the scaling laws of Gao et al. --------------------------------------------------------------------------------

LAWS = {
    "rl": lambda d, alpha, beta: d * (alpha - beta * np.log(d)),
    "best_of_n": lambda d, alpha, beta: d * (alpha - beta * d),
}


@pytest.mark.parametrize(("form", "other"), [("rl", "best_of_n"), ("best_of_n", "rl")])
def test_fit_finds_the_parameters_that_made_the_data(form, other):
    d = np.linspace(0.2, 4, 40)
    gains = LAWS[form](d, 0.8, 0.25)
    law = fit_scaling_law(d, gains, form=form)
    assert (law.alpha, law.beta, law.r2) == pytest.approx((0.8, 0.25, 1.0))
    assert fit_scaling_law(d, gains, form=other).r2 < 0.999


@pytest.mark.parametrize("form", LAWS)
def test_fit_is_unbiased_under_noise_and_r2_is_the_share_explained(form):
    generator = np.random.default_rng(1)
    d = np.linspace(0.2, 4, 40)
    clean = LAWS[form](d, 0.8, 0.25)
    laws = [fit_scaling_law(d, clean + generator.normal(scale=0.1, size=40), form=form) for _ in range(500)]
    for name, true in (("alpha", 0.8), ("beta", 0.25)):
        found = np.array([getattr(law, name) for law in laws])
        assert abs(found.mean() - true) < 4 * found.std() / np.sqrt(len(found))
    # residuals have 38 of 40 degrees of freedom; the total also has the noise in it
    expected = 1 - 38 * 0.01 / (40 * clean.var() + 39 * 0.01)
    assert np.mean([law.r2 for law in laws]) == pytest.approx(expected, abs=0.01)


def test_fit_of_a_run_counts_gains_from_the_evaluation_before_training():
    d = np.array([0.0, 0.5, 1.0, 2.0, 3.0])
    gold = 0.61 + np.r_[0.0, LAWS["rl"](d[1:], 0.3, 0.1)]
    run = run_of(eval_gold=gold, eval_kl_ref_sequence=d**2)
    for give, value in (("alpha", 0.3), ("beta", 0.1), ("r2", 1.0)):
        assert read("fit", run, "eval/gold", form="rl", give=give) == pytest.approx(value)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (run_of(eval_gold=[1.0, 2.0, 3.0], eval_kl_ref_sequence=[0.0, 1.0, 2.0]), "together 3 times; expected at l"),
        (
            run_of(eval_gold=[1.0] * 4, eval_kl_ref_sequence=[0.0, 1.0, 2.0, 3.0], at=[5, 6, 7, 8]),
            "first at iteration 5",
        ),
        (run_of(eval_gold=[1.0] * 5, eval_kl_ref_sequence=[0.0, 1.0, 1.0, 1.0, 1.0]), "fewer than three evaluations"),
        (run_of(eval_gold=[1.0] * 5, eval_kl_ref_sequence=[0.0, 1.0, 2.0, 0.0, -0.1]), "fewer than three evaluations"),
    ],
)
def test_fit_says_what_it_lacks(run, message):
    with pytest.raises(MissingError, match=message):
        read("fit", run, "eval/gold", form="rl", give="beta")


# -- matched KL, hypervolume -----------------------------------------------------------------------------------------


def test_at_kl_is_interpolated_where_the_kl_is_reached_first():
    """From KL 1 to 9, √KL goes from 1 to 3; KL 4 is half of the way, whatever comes later."""
    run = run_of(eval_gold=[0.0, 2.0, 6.0, 50.0, 7.0], eval_kl_ref_sequence=[0.0, 1.0, 9.0, 2.0, 16.0])
    assert read("at_kl", run, "eval/gold", kl=4) == pytest.approx(4.0)
    assert read("at_kl", run, "eval/gold", kl=9) == 6.0
    assert read("at_kl", run, "eval/gold", kl=16) == pytest.approx(7.0)


def test_at_kl_does_not_extrapolate():
    run = run_of(eval_gold=[0.0, 2.0], eval_kl_ref_sequence=[1.0, 4.0])
    with pytest.raises(MissingError, match=r"comes to a KL of 4\.00 at most; expected one that reaches 5"):
        read("at_kl", run, "eval/gold", kl=5)
    with pytest.raises(MissingError, match=r"has a KL of 1\.00 in its first evaluation, above 0\.5"):
        read("at_kl", run, "eval/gold", kl=0.5)
    assert read("at_kl", run, "eval/gold", kl=1) == 0.0


def test_hypervolume_by_hand():
    """A staircase: 1 from KL 1 to 3, then 4 to the limit 10; (5, 2) is dominated, (12, 9) too far, (2, −3) too low."""
    kl, rewards = np.array([12.0, 3, 1, 5, 2]), np.array([9.0, 4, 1, 2, -3])
    assert hypervolume(kl, rewards, kl_limit=10, reward_floor=0) == pytest.approx(2 * 1 + 7 * 4)
    assert hypervolume(kl, rewards, kl_limit=10, reward_floor=1) == pytest.approx(7 * 3)
    assert hypervolume(kl, rewards, kl_limit=0.5, reward_floor=0) == 0
    run = run_of(eval_gold=rewards, eval_kl_ref_sequence=kl)
    assert read("hypervolume", run, "eval/gold", kl=10, reward=0) == pytest.approx(30)


def test_hypervolume_is_the_share_of_points_that_some_policy_dominates():
    """Counted on a fine grid."""
    generator = np.random.default_rng(2)
    for _ in range(5):
        kl, rewards = generator.uniform(-1, 12, 8), generator.normal(size=8)
        edge = (np.arange(400) + 0.5) / 400
        at, height = np.meshgrid(10 * edge, -1 + 4 * edge)
        dominated = np.zeros_like(at, dtype=bool)
        for k, r in zip(kl, rewards, strict=True):
            dominated |= (at >= k) & (height <= r)
        assert hypervolume(kl, rewards, kl_limit=10, reward_floor=-1) == pytest.approx(40 * dominated.mean(), abs=0.2)


# -- what a run lacks, and what cannot be declared --------------------------------------------------------------------


@pytest.mark.parametrize("name", READINGS)
def test_every_reading_says_which_metric_a_run_lacks(name):
    keys = {
        "mean_of_last": {"count": 2},
        "share_below": {"limit": 1},
        "at_peak_of": {"metric": "eval/gold"},
        "change_since_peak_of": {"metric": "eval/gold"},
        "fit": {"form": "rl", "give": "r2"},
        "at_kl": {"kl": 1},
        "hypervolume": {"kl": 1, "reward": 0},
        "relative_distance": {"target": 1},
    }
    with pytest.raises(MissingError, match=r"has logged no eval/scor; did you mean eval/score\?"):
        READINGS[name](**keys.get(name, {})).value(run_of(eval_score=[1.0, 2.0]), "eval/scor")


def test_what_came_before_a_divergence_is_not_the_end():
    run = run_of(eval_score=[1.0, 2.0, math.inf])
    with pytest.raises(MissingError, match="has diverged: eval/score is infinite at iteration 2"):
        read("last", run)
    assert read("last", run_of(eval_score=[math.inf, 2.0])) == 2.0


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("mean_of_last", {"count": 0}, "mean_of_last.count must be a whole number of at least 1, got 0"),
        ("mean_of_last", {"count": True}, "mean_of_last.count must be a whole number of at least 1, got True"),
        ("share_below", {"limit": "low"}, "share_below.limit must be a number, got low"),
        ("change_since_peak_of", {"metric": 3}, "change_since_peak_of.metric must be the name of a metric, got 3"),
        ("at_peak_of", {"metric": "a b"}, "at_peak_of.metric must be the name of a metric, got 'a b'"),
        ("fit", {"form": "cubic", "give": "r2"}, "fit.form must be one of rl, best_of_n, got cubic"),
        ("fit", {"form": ["rl"], "give": "p"}, "fit.give must be one of r2, alpha, beta, got p"),
        ("at_kl", {"kl": -1}, "at_kl.kl must be a number above 0, got -1"),
        ("hypervolume", {"kl": 1, "reward": math.nan}, "hypervolume.reward must be a number, got nan"),
        ("relative_distance", {"target": 0}, "relative_distance.target must be a number other than 0, got 0"),
        ("relative_distance", {"target": 1, "over_last": 2}, "over_last must be above 0 and at most 1, got 2"),
    ],
)
def test_values_that_do_not_fit_are_named(name, keys, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        READINGS[name](**keys)
