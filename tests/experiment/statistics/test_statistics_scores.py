"""Tables of runs: what is checked, what failed runs count as, and which seeds make pairs."""

import math

import pandas as pd
import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.experiment.statistics.scores import MeasureScale, filled, paired_scores


def runs(*rows, columns=("arm", "seed", "score")):
    return pd.DataFrame(rows, columns=list(columns))


def test_a_failed_run_counts_as_the_declared_worst_value():
    table = runs(("a", 1, 3.0), ("a", 2, math.nan), ("b", 1, math.inf), ("b", 2, 1.0))
    found, notes = filled(table, MeasureScale("score", worst=-1.0))
    assert found["score"].tolist() == [3.0, -1.0, -1.0, 1.0]
    assert found["failed"].tolist() == [False, True, True, False]
    assert notes["a"] == "1 failed run of a counted as -1 (declared for failed runs)"


@pytest.mark.parametrize(("higher_is_better", "worst"), [(True, 1.0), (False, 5.0)])
def test_a_failed_run_counts_as_the_worst_run_where_nothing_is_declared(higher_is_better, worst):
    columns = ("arm", "seed", "score", "status")
    table = runs(("a", 1, 3.0, "finished"), ("a", 2, 9.0, "killed"), ("b", 1, 1.0, "finished"), columns=columns)
    table = pd.concat([table, runs(("b", 2, 5.0, "finished"), columns=columns)])
    found, notes = filled(table, MeasureScale("score", higher_is_better=higher_is_better))
    assert found["score"].tolist() == [3.0, worst, 1.0, 5.0]
    assert "no worst value is declared" in notes["a"]
    assert list(notes) == ["a"]


def test_none_is_a_failed_run():
    found, _ = filled(runs(("a", 1, None), ("b", 1, 2.0)), MeasureScale("score", worst=0.0))
    assert found["score"].tolist() == [0, 2]


def test_filled_leaves_the_table_of_the_caller_alone():
    table = runs(("a", 1, math.nan), ("a", 2, 1.0))
    filled(table, MeasureScale("score"))
    assert math.isnan(table["score"][0])


def test_no_finished_run_and_no_worst_value_is_an_error():
    with pytest.raises(UserError, match="no run finished with a value of score"):
        filled(runs(("a", 1, math.nan)), MeasureScale("score"))


def test_seeds_without_all_arms_are_left_out_and_named():
    table = runs(("b", 3, 30.0), ("a", 1, 1.0), ("b", 1, 10.0), ("a", 2, 2.0), ("a", 3, 3.0))
    scores = paired_scores(table, MeasureScale("score"), ["a", "b"])
    assert scores.seeds == (1, 3)
    assert scores.values["a"].tolist() == [1, 3]
    assert scores.values["b"].tolist() == [10, 30]
    assert scores.notes == ("seed 2 left out: no run of b",)


def test_seeds_that_lack_the_same_runs_are_named_together():
    table = runs(("a", 1, 1.0), ("a", 2, 1.0), ("b", 3, 1.0), ("a", 4, 1.0), ("b", 4, 1.0))
    notes = paired_scores(table, MeasureScale("score"), ["a", "b"]).notes
    assert notes == ("seeds 1, 2 left out: no run of b", "seed 3 left out: no run of a")


def test_a_failed_run_of_another_arm_is_not_noted():
    table = runs(("a", 1, 1.0), ("b", 1, 2.0), ("c", 1, math.nan))
    assert paired_scores(table, MeasureScale("score"), ["a", "b"]).notes == ()


def test_a_seed_counts_with_its_mean_over_all_tasks():
    columns = ("arm", "seed", "task", "score")
    table = runs(
        ("a", 1, "maze", 1.0), ("a", 1, "cart", 3.0), ("a", 2, "maze", 5.0), ("a", 2, "cart", 7.0),
        ("b", 1, "maze", 0.0), ("b", 1, "cart", 4.0), ("b", 2, "maze", 0.0),
        columns=columns,
    )  # fmt: skip
    scores = paired_scores(table, MeasureScale("score"), ["a", "b"])
    assert scores.values["a"].tolist() == [2]  # (1 + 3) / 2
    assert scores.values["b"].tolist() == [2]  # (0 + 4) / 2
    assert scores.notes == ("seed 2 left out: no run of b on cart",)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (runs(("a", 1, 1.0), columns=("arm", "sed", "score")), "no column 'seed': did you mean sed"),
        (runs(("a", 1, 1.0), columns=("arm", "seed", "x")), "no column 'score'.*its columns are arm, seed, x"),
        (runs(("a", 1, "high")), "'score' must hold numbers"),
        (runs(("a", "x", 1.0)), "'seed' must hold numbers"),
        (runs(("a", 1.5, 1.0)), "'seed' must hold whole numbers"),
        (runs(("a", None, 1.0), ("a", 1, 1.0)), "'seed' must hold whole numbers"),
        (runs(("a", 1, 1.0), ("a", 1, 2.0)), "two rows are of arm a, seed 1"),
    ],
)
def test_a_wrong_table_is_refused(table, message):
    with pytest.raises(UserError, match=message):
        filled(table, MeasureScale("score"))


def test_an_arm_without_runs_is_refused():
    with pytest.raises(UserError, match="no run of arm 'ppp': did you mean ppo"):
        paired_scores(runs(("ppo", 1, 1.0)), MeasureScale("score"), ["ppp"])
