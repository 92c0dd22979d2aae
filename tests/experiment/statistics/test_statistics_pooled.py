"""Statistics over several tasks, by hand and against rliable where it is installed."""

import numpy as np
import pandas as pd
import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.statistics.pooled import (
    interquartile_means,
    performance_profile,
    probability_of_improvement,
)
from rlhf_lightning.experiment.statistics.scores import MeasureScale

SCORE = MeasureScale("score")


def table_of(scores):
    """Of values by arm and task."""
    rows = [
        (arm, seed, task, value)
        for arm, tasks in scores.items()
        for task, values in tasks.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "task", "score"])


SMALL = table_of({"a": {"maze": [1.0, 2.0], "cart": [0.0, 0.0]}, "b": {"maze": [0.0, 2.0], "cart": [1.0, 9.0]}})


def random_scores(runs=7, tasks=4):
    rng = np.random.default_rng(5)
    return {arm: rng.normal(shift, 1, size=(runs, tasks)) for arm, shift in (("a", 0.0), ("b", 0.4))}


def table_of_arrays(scores):
    return table_of({arm: {f"task{i}": column for i, column in enumerate(runs.T)} for arm, runs in scores.items()})


def test_interquartile_mean_is_over_the_middle_half_of_all_runs():
    found = interquartile_means(SMALL, SCORE).set_index("arm")["iqm"].to_dict()
    assert found == {"a": 0.5, "b": 1.5}  # (0 + 1) / 2 of 0, 0, 1, 2; (1 + 2) / 2 of 0, 1, 2, 9


def test_interval_comes_from_resampling_within_tasks():
    # within a task all runs are the same: there is nothing to resample, though the tasks differ by far
    table = table_of({"a": {"maze": [1.0] * 4, "cart": [100.0] * 4}})
    found = interquartile_means(table, SCORE).iloc[0]
    assert (found["iqm_low"], found["iqm_high"]) == (found["iqm"], found["iqm"]) == (50.5, 50.5)


@pytest.mark.parametrize(("higher_is_better", "expected"), [(True, 0.3125), (False, 0.6875)])
def test_probability_of_improvement_by_hand(higher_is_better, expected):
    # maze: 1 > 0, 1 < 2, 2 > 0, 2 = 2 make 2.5 of 4; cart: 0 of 4
    scale = MeasureScale("score", higher_is_better=higher_is_better)
    probability, low, high = probability_of_improvement(SMALL, scale, "a", "b")
    assert probability == pytest.approx(expected)
    assert 0 <= low < probability < high <= 1


def test_performance_profile_by_hand():
    found = performance_profile(SMALL, SCORE, [-1.0, 0.5, 1.5])
    shares = found[found["arm"] == "b"].set_index("threshold")["share"].to_dict()
    assert shares == {-1.0: 1.0, 0.5: 0.75, 1.5: 0.5}  # maze 0, 2 and cart 1, 9
    assert (found["low"] <= found["share"]).all()
    assert (found["share"] <= found["high"]).all()


def test_performance_profile_falls_over_all_values_that_occur():
    found = performance_profile(SMALL, SCORE)
    assert found["threshold"].unique().tolist() == [0, 1, 2, 9]
    assert found[found["arm"] == "b"]["share"].tolist() == [0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("statistic", [interquartile_means, performance_profile])
def test_one_task_is_refused(statistic):
    with pytest.raises(UserError, match="at least two tasks"):
        statistic(SMALL[SMALL["task"] == "maze"], SCORE)


def test_an_arm_without_a_task_is_refused():
    with pytest.raises(UserError, match="arm b has no run of task cart"):
        interquartile_means(SMALL[(SMALL["arm"] == "a") | (SMALL["task"] == "maze")], SCORE)


def test_pooled_statistics_agree_with_rliable():
    metrics = pytest.importorskip("rliable.metrics")
    library = pytest.importorskip("rliable.library")
    scores = random_scores()
    table = table_of_arrays(scores)
    ours = interquartile_means(table, SCORE).set_index("arm")["iqm"].to_dict()
    assert ours == pytest.approx({arm: metrics.aggregate_iqm(runs) for arm, runs in scores.items()})
    probability, *_ = probability_of_improvement(table, SCORE, "a", "b")
    assert probability == pytest.approx(metrics.probability_of_improvement(scores["a"], scores["b"]))
    thresholds = np.linspace(-2, 2, 9)
    profiles, _ = library.create_performance_profile(scores, thresholds, reps=10)
    found = performance_profile(table, SCORE, thresholds.tolist())
    for arm, profile in profiles.items():
        assert found[found["arm"] == arm]["share"].tolist() == pytest.approx(profile.tolist())
