import numpy as np
import pandas as pd
import pytest

from rlhf_lightning.plots.measures import tolerance
from rlhf_lightning.plots.verdict import judge
from rlhf_lightning.records.runs import load_run
from tests.plots.synthetic_kinds import write_control, write_preference
from tests.plots.synthetic_runs import write_csv, write_policy


def run_of(path, **columns):
    path.mkdir()
    count = max(len(values) for values in columns.values())
    columns = {name.replace("__", "/"): np.array(values, dtype=float) for name, values in columns.items()}
    write_csv(path / "metrics.csv", {"iteration": 10.0 * np.arange(count), **columns})
    return load_run(path)


def test_exploited_when_gold_falls_while_the_proxy_rises(tmp_path):
    verdict = judge(load_run(write_policy(tmp_path / "a", noise=0)))
    # Gold is 0.61 + d (0.18 − 0.039 d) with d = √KL, highest at d = 0.18 / 0.078 = 2.31, KL = 5.3; KL is
    # 42 (t/200)^1.4 at iteration t, so that is iteration 45.7; the evaluations nearest to it are 40 and 50.
    assert verdict.outcome == "exploited"
    assert verdict.peak == 50
    assert verdict.headline == "Gold peaks at iteration 50; the proxy keeps rising"
    assert verdict.sentences[0] == (
        "Gold rose from 0.61 to 0.82 at iteration 50, then fell to 0.14 by iteration 200, while the proxy kept "
        "rising (0.78 to 1.45): the reward model is being exploited."
    )
    assert "6.03 nats from the reference" in verdict.sentences[1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("course", "outcome"), [("exploited", "exploited"), ("healthy", "improved"), ("unstable", "declined")]
)
def test_the_outcome_survives_the_noise_of_evaluation(tmp_path, course, outcome, seed):
    assert judge(load_run(write_policy(tmp_path / "a", course, seed=seed))).outcome == outcome


def test_a_fall_from_the_start_recommends_no_iteration(tmp_path):
    run = run_of(tmp_path / "a", eval__score=[0, 1, 2, 3, 4, 5], eval__gold=[0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    verdict = judge(run)
    assert (verdict.outcome, verdict.peak) == ("exploited", 0)
    assert verdict.headline == "The proxy rises while gold falls"
    assert not any("worth keeping" in sentence for sentence in verdict.sentences)


def test_flat_when_gold_moves_less_than_its_noise(tmp_path):
    gold = [0.60, 0.63, 0.59, 0.62, 0.60, 0.64, 0.61, 0.62]
    verdict = judge(run_of(tmp_path / "a", eval__score=np.linspace(0, 1, 8), eval__gold=gold))
    assert verdict.outcome == "flat"
    assert "did not change beyond its noise (0.60 to 0.62)" in verdict.sentences[0]


def test_no_gold_claims_nothing_about_quality(tmp_path):
    verdict = judge(load_run(write_policy(tmp_path / "a", gold=False)))
    assert verdict.outcome == "no_gold"
    assert "cannot be told" in verdict.sentences[0]


def test_a_run_trained_on_gold_cannot_be_exploited(tmp_path):
    values = [0.5, 0.8, 0.9, 0.7]
    verdict = judge(run_of(tmp_path / "a", eval__score=values, eval__gold=values))
    assert (verdict.outcome, verdict.peak) == ("trained_on_gold", None)


def test_training_on_gold_is_said_in_the_headline(tmp_path):
    verdict = judge(load_run(write_policy(tmp_path / "a", "healthy", on_gold=True, noise=0)))
    # 0.61 + 0.27 (1 − e^−3) = 0.867 at the end.
    assert verdict.headline == "Gold, which is trained on, rose from 0.61 to 0.87"
    assert not any("proxy" in sentence.lower() for sentence in verdict.sentences)


def test_one_evaluation_is_too_early(tmp_path):
    assert judge(run_of(tmp_path / "a", eval__score=[0.1], eval__gold=[0.6])).outcome == "unmeasured"


def test_training_batches_stand_in_for_missing_evaluations(tmp_path):
    rising = np.linspace(0, 1, 10)
    run = run_of(tmp_path / "a", objective__score=rising, objective__gold=0.6 + 0.2 * rising)
    assert judge(run).outcome == "improved"


def test_side_effects_are_named_only_where_they_are_large(tmp_path):
    steady = {"eval__score": [0, 1, 2], "eval__gold": [0.5, 0.6, 0.7]}
    large = run_of(tmp_path / "a", **steady, eval__perplexity=[2, 3, 5], eval__length_mean=[10, 15, 30])
    small = run_of(tmp_path / "b", **steady, eval__perplexity=[2, 2.1, 2.2], eval__length_mean=[10, 11, 12])
    assert "Replies grew from 10.0 to 30.0 tokens." in judge(large).sentences
    assert any("rose from 2.00 to 5.00" in sentence for sentence in judge(large).sentences)
    assert not any("Replies" in sentence or "Perplexity" in sentence for sentence in judge(small).sentences)


def test_tolerance_estimates_the_deviation_of_white_noise():
    noise = np.random.default_rng(0).normal(scale=0.1, size=4000)
    trend = np.linspace(0, 1, 4000)
    assert tolerance(pd.Series(trend + noise)) == pytest.approx(0.3, rel=6e-2)


def test_tolerance_of_a_few_values_is_a_fifth_of_their_range():
    assert tolerance(pd.Series([0.55, 0.74, 0.70])) == pytest.approx(0.2 * 0.19)


def test_tolerance_of_a_straight_line_is_a_share_of_its_range():
    assert tolerance(pd.Series([0.0, 1, 2, 3, 4, 5])) == pytest.approx(0.1)


def test_control_is_judged_by_its_return(tmp_path):
    verdict = judge(load_run(write_control(tmp_path / "a")))
    assert (verdict.outcome, verdict.headline) == ("improved", "Mean return rose from 25 to 500")
    assert verdict.sentences == [
        "The mean return of 20 evaluation episodes, with the most probable action at every step, rose from 25 to 500 "
        "in 98,304 environment steps; the best was 500, after 98,304."
    ]


@pytest.mark.parametrize(
    ("returns", "outcome", "headline"),
    [
        ([20, 300, 490, 500, 200, 60], "declined", "Mean return rose to 500, then fell to 60.0"),
        ([500, 400, 300, 200, 100, 50], "declined", "Mean return fell from 500 to 50"),
        ([-500, -500, -500], "flat", "Mean return stays where it was"),
    ],
)
def test_control_that_did_not_hold_is_said_so(tmp_path, returns, outcome, headline):
    steps = 100.0 * np.arange(len(returns))
    verdict = judge(run_of(tmp_path / "a", eval__score=returns, env_steps=steps))
    assert (verdict.outcome, verdict.headline) == (outcome, headline)


def test_many_rejected_steps_are_named(tmp_path):
    often = run_of(
        tmp_path / "a", eval__score=[1, 2, 3, 4], env_steps=[0, 1, 2, 3], trust_region__rejections=[0, 1, 1, 2]
    )
    assert "The line search rejected 2 of 4 steps, which left the policy as it was." in judge(often).sentences
    seldom = load_run(write_control(tmp_path / "b"))  # 2 of 48
    assert not any("rejected" in sentence for sentence in judge(seldom).sentences)


def test_preferences_are_judged_by_gold_and_held_out_pairs(tmp_path):
    verdict = judge(load_run(write_preference(tmp_path / "a")))
    assert (verdict.outcome, verdict.headline) == ("improved", "Gold rose from 0.55 to 0.80")
    assert "Held-out accuracy is 80.0 % (share of pairs ordered rightly" in " ".join(verdict.sentences)
    # From 0.55 to 0.75 at t = 0.4, which is step 200 of 500, then to 0.15; KL is 9 t.
    fallen = judge(load_run(write_preference(tmp_path / "b", fall=True)))
    assert (fallen.outcome, fallen.peak) == ("declined", 200)
    assert fallen.headline == "Gold peaks at step 200, then falls"
    assert "The policy worth keeping is the one near step 200, 3.60 nats from the reference." in fallen.sentences


def test_preferences_without_gold_claim_nothing_about_quality(tmp_path):
    verdict = judge(load_run(write_preference(tmp_path / "a", gold=False)))
    assert (verdict.outcome, verdict.headline) == ("no_gold", "Held-out accuracy: 50 → 80 %")
    assert any("cannot be told" in sentence for sentence in verdict.sentences)
