"""Summaries of arms."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from rlhf_lightning.experiment.statistics.arms import describe, mean_estimate
from rlhf_lightning.experiment.statistics.scores import MeasureScale


def test_interval_is_students_below_15_values():
    # mean 3, s² = 14 / 3, s / √4 = 1.080123, t with 3 degrees of freedom 3.182446: half of the width is 3.437436
    found = mean_estimate(np.array([1.0, 2.0, 3.0, 6.0]))
    assert found.method == "Student"
    assert (found.low, found.high) == pytest.approx((3 - 3.437436, 3 + 3.437436), abs=1e-5)


def test_interval_is_a_bca_bootstrap_from_15_values_on():
    values = np.random.default_rng(3).lognormal(size=15)
    found = mean_estimate(values)
    assert found.method == "BCa bootstrap"
    # other resamples give the same up to their noise; a skewed sample has the longer side above
    again = bootstrap((values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(9)).confidence_interval
    assert (found.low, found.high) == pytest.approx((again.low, again.high), rel=0.05)
    assert found.high - found.mean > 1.3 * (found.mean - found.low)
    assert mean_estimate(values[:14]).method == "Student"
    assert mean_estimate(values) == found


def test_interval_of_equal_values_has_no_width():
    found = mean_estimate(np.full(20, 2.0))
    assert (found.mean, found.low, found.high) == (2, 2, 2)


def test_interval_of_one_value_is_unknown():
    found = mean_estimate(np.array([2.0]))
    assert found.mean == 2
    assert math.isnan(found.low)
    assert found.method == "none"


def test_describe_counts_failed_runs():
    table = pd.DataFrame({"arm": list("aabb"), "seed": [1, 2, 1, 2], "score": [1.0, 3.0, math.nan, 5.0]})
    found = describe(table, MeasureScale("score", worst=1.0)).set_index("arm")
    assert found["mean"].to_dict() == {"a": 2, "b": 3}
    assert found["sd"].to_dict() == pytest.approx({"a": math.sqrt(2), "b": math.sqrt(8)})
    assert found["failed"].to_dict() == {"a": 0, "b": 1}
    assert found["seeds"].to_dict() == {"a": 2, "b": 2}
    assert "iqm" not in found


def test_describe_adds_interquartile_means_over_several_tasks():
    rows = [("a", seed, task, value) for task, values in TASKS.items() for seed, value in enumerate(values)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "task", "score"])
    found = describe(table, MeasureScale("score")).iloc[0]
    assert found["mean"] == pytest.approx(3.25)  # (0 + 1 + 2 + 10) / 4
    assert found["iqm"] == pytest.approx(1.5)  # (1 + 2) / 2


TASKS = {"maze": [0.0, 1.0], "cart": [2.0, 10.0]}
