"""Declared measures: what they read from a run, what is said of its end, and mistakes in one line."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.measures import Measure, check_logged, read_measures, read_primary
from rlhf_lightning.experiment.readings.course import Last, MeanOfLast, RelativeDistance
from rlhf_lightning.experiment.readings.frontier import Fit
from rlhf_lightning.records.runs import Run, load_run
from tests.plots.synthetic_runs import write_pipeline, write_policy

DECLARED = """
return: {metric: eval/score, read: last, better: higher, scale: [0, 500]}
kl: {metric: eval/kl_ref_sequence, better: lower, scale: [40, 0], failed: 100}
late: {metric: eval/score, read: {mean_of_last: 5}}
area: {metric: eval/score, read: mean_over_experience}
inside: {metric: trust_region/kl, read: {share_below: 0.015}}
drop: {metric: eval/gold, read: drop_from_peak}
proxy_rise: {metric: eval/score, read: {change_since_peak_of: eval/gold}}
r2: {metric: eval/gold, read: {fit: {form: rl, against: eval/kl_ref_sequence, give: r2}}}
at_kl: {metric: eval/gold, read: {at_kl: 5}}
hypervolume: {metric: eval/gold, read: {hypervolume: {kl: 20, reward: 0}}}
relative: {metric: eval/kl_ref_sequence, read: {relative_distance: {target: 6, over_last: 0.2}}}
"""


def measure(text, name="m"):
    return read_measures({name: yaml.safe_load(text)}, "spec.yaml: measures")[name]


def run_of(*, axis="iteration", done=True, config=None, **columns):
    named = {name.replace("_", "/", 1): values for name, values in columns.items()}
    table = pd.DataFrame({axis: range(len(next(iter(named.values())))), **named})
    return Run(Path("runs/x"), "x", table, config=config or {}, done=done)


def test_every_form_of_a_declaration_is_read():
    found = read_measures(yaml.safe_load(DECLARED), "spec.yaml: measures")
    assert list(found) == list(yaml.safe_load(DECLARED))
    assert found["return"] == Measure("return", "eval/score", Last(), "higher", (0.0, 500.0), 0.0)
    assert found["kl"] == Measure("kl", "eval/kl_ref_sequence", Last(), "lower", (40.0, 0.0), 100.0)
    assert found["late"] == Measure("late", "eval/score", MeanOfLast(5), "higher", None, None)
    assert found["r2"].reading == Fit("rl", "r2", "eval/kl_ref_sequence")
    assert found["relative"].reading == RelativeDistance(6, 0.2)


@pytest.fixture(scope="module")
def exploited(tmp_path_factory):
    """Gold is 0.61 + d (0.18 − 0.039 d) with KL = d² up to 42, without noise; the proxy rises throughout."""
    return load_run(write_policy(tmp_path_factory.mktemp("runs") / "one", noise=0))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{metric: eval/gold, read: {fit: {form: best_of_n, give: alpha}}}", 0.18),
        ("{metric: eval/gold, read: {fit: {form: best_of_n, give: beta}}}", 0.039),
        ("{metric: eval/kl_ref_sequence}", 42.0),
        ("{metric: eval/gold}", 0.61 + 42**0.5 * (0.18 - 0.039 * 42**0.5)),
        ("{metric: eval/gold, read: {at_kl: 5}}", 0.61 + 5**0.5 * (0.18 - 0.039 * 5**0.5)),
    ],
)
def test_measures_of_an_over_optimized_run(exploited, text, value):
    found = measure(text).read(exploited)
    assert found.value == pytest.approx(value, abs=0.002)
    assert (found.missing, found.note) == ("", "")


def test_a_pipeline_is_read_in_its_stages(tmp_path):
    run = load_run(write_pipeline(tmp_path / "whole"))
    policy = run.policy.series("eval/gold")
    assert measure("{metric: eval/gold}").read(run).value == policy.iloc[-1]
    of_reward = run.stages["reward"].series("eval/accuracy")
    assert measure("{metric: eval/accuracy}").read(run).value == of_reward.iloc[-1]


def test_a_run_without_the_metric_says_so():
    found = measure("{metric: eval/gold}").read(run_of(eval_score=[1.0]))
    assert math.isnan(found.value)
    assert found.missing.startswith("has logged no eval/gold; ")
    empty = Run(Path("runs/x"), "x", pd.DataFrame({"iteration": pd.Series(dtype=float)}))
    assert math.isnan(measure("{metric: eval/gold}").read(empty).value)


def test_a_fit_to_a_constant_gives_no_number():
    run = run_of(eval_gold=[1.0] * 6, eval_kl_ref_sequence=np.arange(6.0))
    found = measure("{metric: eval/gold, read: {fit: {form: rl, give: r2}}}").read(run)
    assert math.isnan(found.value)
    assert "nothing finite" in found.missing


@pytest.mark.parametrize(
    ("run", "note"),
    [
        (run_of(eval_score=[1.0, 2.0]), ""),
        (run_of(eval_score=[1.0, math.nan]), "eval/score was last logged at iteration 0, before the end at 1"),
        (run_of(eval_score=[1.0, 2.0], done=False), "unfinished: iteration 1 so far"),
        (run_of(eval_score=[1.0, 2.0], config={"trainer": {"max_epochs": 1}}), ""),
        (run_of(eval_score=[1.0, 2.0], config={"trainer": {"max_epochs": 9}}), "was stopped at iteration 1 of 9"),
        (run_of(eval_score=[1.0, 2.0], config={"trainer": {"max_epochs": -1}}), ""),
        (run_of(axis="step", eval_score=[1.0, 2.0], config={"trainer": {"max_epochs": 9, "max_steps": 1}}), ""),
        (
            run_of(axis="step", eval_score=[1.0, 2.0], config={"trainer": {"max_steps": 7}}),
            "was stopped at step 1 of 7",
        ),
    ],
)
def test_what_is_unusual_about_the_end_of_a_run_is_noted(run, note):
    found = measure("{metric: eval/score, read: mean_over_experience}").read(run)
    if "last logged" in note:
        found = measure("{metric: eval/score}").read(run)
    assert found.note == note


def test_metrics_that_no_run_logs_are_refused_with_close_names():
    runs = [run_of(eval_score=[1.0]), run_of(eval_gold=[1.0], policy_loss=[1.0])]
    check_logged([measure("{metric: eval/gold}"), measure("{metric: eval/score}")], runs)
    with pytest.raises(UserError) as error:
        check_logged([measure("{metric: eval/golf}"), measure("{metric: eval/gold, read: {at_kl: 2}}")], runs)
    assert str(error.value).startswith("measure m: no run has logged eval/golf; did you mean eval/gold?; measure m: no")
    assert "no run has logged eval/kl_ref_sequence; expected one of eval/gold, eval/score" in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("eval/score", "measures.m: expected a mapping such as {metric: eval/score, read: last}, got 'eval/score'"),
        ("{read: last}", "measures.m.metric: expected the name of a logged metric such as eval/score, got None"),
        ("{metric: eval/score, reed: last}", "measures.m: unknown key 'reed'; did you mean read?"),
        ("{metric: eval/score, better: more}", "measures.m.better: expected higher or lower, got 'more'"),
        ("{metric: eval/score, read: lost}", "measures.m.read: unknown reading 'lost'; did you mean last?"),
        (
            "{metric: eval/score, read: [5]}",
            "measures.m.read: unknown reading [5]; expected last, mean_of_last, mean_over_experience",
        ),
        ("{metric: eval/score, read: {last: 1, fit: 2}}", "measures.m.read: expected one reading such as"),
        ("{metric: eval/score, read: {last: 3}}", "measures.m.read: last takes no value, got 3"),
        ("{metric: eval/score, read: mean_of_last}", "measures.m.read: mean_of_last needs count"),
        ("{metric: eval/score, read: {mean_of_last: 1.5}}", "measures.m.read: mean_of_last.count must be a whole numb"),
        ("{metric: eval/score, read: {fit: {form: rl}}}", "measures.m.read: fit needs give"),
        ("{metric: eval/score, read: {fit: {form: rl, gives: r2}}}", "fit has no key 'gives'; did you mean give?"),
        ("{metric: eval/score, read: max}", "measures.m.read: max is refused: the best of many looks is biased upward"),
        ("{metric: eval/score, scale: [0, 1], better: lower}", "measures.m.scale: expected [worst, best] with the wor"),
        ("{metric: eval/score, scale: [1, 1]}", "with the worst below the best, since higher is better"),
        ("{metric: eval/score, scale: 500}", "measures.m.scale: expected [worst, best], two numbers, got 500"),
        ("{metric: eval/score, failed: never}", "measures.m.failed: expected the number that a failed run counts as"),
    ],
)
def test_mistakes_are_named_with_their_place(text, line):
    with pytest.raises(UserError) as error:
        measure(text)
    assert line in str(error.value)
    assert str(error.value).startswith("spec.yaml: measures.m")


def test_all_mistakes_are_named_at_once():
    with pytest.raises(UserError) as error:
        read_measures(yaml.safe_load("{a: {metric: x, read: lost}, b: {metric: 3}}"), "measures")
    assert "measures.a.read" in str(error.value)
    assert "measures.b.metric" in str(error.value)
    with pytest.raises(UserError, match="measures: expected a mapping of names to measures, got None"):
        read_measures(None, "measures")


@pytest.mark.parametrize("read", ["max", "best", "{best: 3}"])
def test_a_best_one_on_the_way_cannot_decide(read):
    with pytest.raises(UserError, match="read the last evaluation"):
        read_primary(yaml.safe_load(f"{{metric: eval/score, read: {read}}}"), "metric")


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        ("drop_from_peak", "never negative"),
        ({"change_since_peak_of": "eval/gold"}, "never positive"),
        ({"at_peak_of": "eval/gold"}, "biased upward"),
    ],
)
def test_what_has_one_sign_or_is_biased_cannot_decide(read, reason):
    with pytest.raises(UserError, match=rf"^metric\.read: .*{reason}.*, which cannot decide a comparison; expected"):
        read_primary({"metric": "eval/gold", "read": read}, "metric")
    if read != "drop_from_peak":
        assert read_primary({"metric": "eval/score", "read": read}, "metric").reading.metric == "eval/gold"


def test_the_primary_is_read_at_the_end_unless_declared_otherwise():
    assert read_primary({"metric": "eval/gold"}, "metric") == Measure("primary", "eval/gold", Last())
